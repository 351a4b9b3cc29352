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


# What is changed in the user's URL, and what is said.
CAUSES = {
    "a wrong password": ("s3cret", "wrong", "user name or password refused (check OTT_AMQP_URL)"),
    "no such virtual host": ("/mine", "/nowhere", "vhost nowhere not found (check OTT_AMQP_URL"),
    "another virtual host": ("/mine", "/", "access to vhost '/' refused for user 'limited'"),
    "TLS to a plain port": ("amqp://", "amqps://", "the port does not speak TLS: use amqp://"),
}


@pytest.mark.parametrize("cause", CAUSES)
async def test_the_cause_is_told(refusal, user, cause):
    right, wrong, said = CAUSES[cause]
    assert said in await refusal(user.replace(right, wrong))


@pytest.mark.parametrize("of", ["vhost", "user"])
async def test_a_connection_limit_is_told(refusal, user, secured, of):
    which = ("-p", "mine") if of == "vhost" else ("limited",)
    secured.ctl(f"set_{of}_limits", *which, '{"max-connections": 0}')
    try:
        assert "connection limit (0) is reached" in await refusal(user)
    finally:
        secured.ctl(f"clear_{of}_limits", *which, *(["max-connections"] if of == "user" else []))


async def test_plain_amqp_spoken_to_a_port_for_tls(refusal, secured):
    text = await refusal(f"amqp://limited:s3cret@127.0.0.1:{secured.tls_port}/mine")
    assert "the server speaks TLS on this port (begin OTT_AMQP_URL with amqps)" in text


async def test_a_missing_client_certificate(refusal, secured):
    text = await refusal(secured.tls_url(), amqp_ca_file=secured.authority.ca)
    assert "OTT_AMQP_CERT_FILE" in text
