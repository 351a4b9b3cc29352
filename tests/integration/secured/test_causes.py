"""Why a connection does not come about: the true cause, in one line without a secret."""

from collections.abc import Callable

import pytest

from tests.integration.secured.conftest import SecuredBroker
from worker.amqp.connection import connect
from worker.errors import BrokerUnreachable
from worker.settings import Settings, load_settings


@pytest.fixture
def refusal(secured: SecuredBroker) -> Callable[..., object]:
    """How a connection to this URL fails."""

    async def why(url: str, **more: object) -> str:
        with pytest.raises(BrokerUnreachable) as caught:
            await connect(_settings(url, **more), "test")
        text = str(caught.value)
        assert "\n" not in text
        assert "s3cret" not in text
        return text

    return why


def _settings(url: str, **more: object) -> Settings:
    return load_settings(amqp_url=url, **more)


@pytest.fixture(scope="module")
def user(secured: SecuredBroker) -> str:
    """A user with rights on the virtual host `mine` alone; the URL of the broker for it."""
    secured.add_tenant("mine", "limited", "s3cret")
    return secured.url_of("limited", "s3cret", "mine")


async def test_a_wrong_password(refusal: Callable, user: str) -> None:
    text = await refusal(user.replace("s3cret", "wrong"))
    assert text.endswith("user name or password refused (check OTT_AMQP_URL)")


async def test_a_virtual_host_that_does_not_exist(refusal: Callable, user: str) -> None:
    text = await refusal(user.replace("/mine", "/nowhere"))
    assert text.endswith("the virtual host nowhere does not exist (check the end of OTT_AMQP_URL)")


async def test_a_virtual_host_that_the_user_may_not_use(refusal: Callable, user: str) -> None:
    text = await refusal(user.replace("/mine", "/"))
    assert "user limited may not use the virtual host /" in text


async def test_the_connection_limit_of_a_virtual_host(
    refusal: Callable, user: str, secured: SecuredBroker
) -> None:
    secured.ctl("set_vhost_limits", "-p", "mine", '{"max-connections": 0}')
    try:
        assert "a connection limit is reached: 0 for the virtual host mine" in await refusal(user)
    finally:
        secured.ctl("clear_vhost_limits", "-p", "mine")


async def test_the_connection_limit_of_a_user(refusal: Callable, user: str, secured: SecuredBroker) -> None:
    secured.ctl("set_user_limits", "limited", '{"max-connections": 0}')
    try:
        assert "a connection limit is reached: 0 for this user" in await refusal(user)
    finally:
        secured.ctl("clear_user_limits", "limited", "max-connections")


async def test_tls_spoken_to_a_plain_port(refusal: Callable, user: str) -> None:
    text = await refusal(user.replace("amqp://", "amqps://"))
    assert "the port does not speak TLS: use amqp://" in text


async def test_plain_amqp_spoken_to_a_port_for_tls(
    refusal: Callable, user: str, secured: SecuredBroker
) -> None:
    text = await refusal(f"amqp://limited:s3cret@127.0.0.1:{secured.tls_port}/mine")
    assert "amqps" in text


async def test_a_missing_client_certificate(refusal: Callable, secured: SecuredBroker) -> None:
    text = await refusal(secured.tls_url(), amqp_ca_file=secured.authority.ca)
    assert "OTT_AMQP_CERT_FILE" in text


async def test_a_port_where_nothing_listens(refusal: Callable) -> None:
    text = await refusal("amqp://limited:s3cret@127.0.0.1:1/")
    assert text == "RabbitMQ at 127.0.0.1:1 cannot be reached: connection refused"
