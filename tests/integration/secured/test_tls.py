"""TLS: verified by default, with an authority and client certificate of one's own, and no way around it."""

import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from yarl import URL

from tests.faults.proxy import Proxy
from tests.integration.secured.conftest import Authority, SecuredBroker
from tests.rig import Requester, Rig, messenger
from worker.amqp.connection import connect
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.marketing_cloud import http
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.sandbox import Sandbox
from worker.settings import Settings, load_settings


@pytest.fixture
def tls_settings(secured: SecuredBroker, prefix: str) -> Callable[..., Settings]:
    """Settings of a worker that speaks TLS to its broker, with a client certificate."""

    def make(**overrides: object) -> Settings:
        base: dict[str, object] = {
            "amqp_url": secured.tls_url(),
            "amqp_ca_file": secured.authority.ca,
            "amqp_cert_file": secured.authority.file("client"),
            "amqp_key_file": secured.authority.key("client"),
            "prefix": prefix,
            "mc_client_id": "sandbox",
            "mc_client_secret": "sandbox",
            "admin_port": None,
        }
        return load_settings(**{**base, **overrides})

    return make


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that nobody here trusts."""
    return Authority.make(tmp_path)


async def refusal(settings: Settings) -> str:
    with pytest.raises(BrokerUnreachable) as caught:
        await connect(settings, "test")
    text = str(caught.value)
    assert "\n" not in text
    assert "guest" not in text
    return text


async def test_a_worker_registers_over_mutual_tls(tls_settings, secured):
    async with Rig(tls_settings) as rig:
        await rig.start_worker(rig.settings())
        async with Requester(secured.url, rig.settings().prefix) as requester:
            assert (await requester.ask(messenger()))["status"] == "registered"


async def test_a_broker_of_a_strange_authority_is_refused(tls_settings, stranger):
    text = await refusal(tls_settings(amqp_ca_file=stranger.ca))
    assert "TLS failed: CERTIFICATE_VERIFY_FAILED" in text
    assert "OTT_AMQP_CA_FILE" in text


async def test_a_broker_with_another_host_name_is_refused(tls_settings, secured):
    text = await refusal(tls_settings(amqp_url=secured.tls_url("127.0.0.1")))
    assert "TLS failed" in text
    assert "host name" in text


@pytest.mark.parametrize("switch", ["no_verify_ssl=1", "verify=verify_none", "no_verify=true"])
async def test_no_option_of_the_url_turns_verification_off(tls_settings, secured, stranger, switch):
    settings = tls_settings(amqp_url=f"{secured.tls_url()}?{switch}", amqp_ca_file=stranger.ca)
    assert "CERTIFICATE_VERIFY_FAILED" in await refusal(settings)


async def test_a_worker_without_a_client_certificate_is_turned_down_in_one_line(tls_settings):
    assert await refusal(tls_settings(amqp_cert_file=None, amqp_key_file=None))


@pytest.fixture
async def tls_sandbox(authority: Authority) -> AsyncIterator[str]:
    """The sandbox behind a TLS terminator."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.file("sandbox"), authority.key("sandbox"))
    async with Sandbox() as sandbox, Proxy("127.0.0.1", URL(sandbox.url).port or 0, tls=context) as proxy:
        yield f"https://localhost:{proxy.port}"


def upstream_settings(url: str, ca: Path | None) -> Settings:
    return load_settings(
        mc_client_id="sandbox", mc_client_secret="sandbox", mc_auth_url=url, mc_rest_url=url, mc_ca_file=ca
    )


async def test_marketing_cloud_is_called_over_tls_with_an_authority_of_ones_own(tls_sandbox, authority):
    async with MarketingCloud(upstream_settings(tls_sandbox, authority.ca), EventListener()) as cloud:
        token = await cloud.accounts.get(None)
        assert (await cloud.register(messenger(), token, _at_once)).status == 201


async def test_replaced_certificates_end_the_connections_that_the_old_ones_vouch_for(
    tls_sandbox, authority, stranger, tmp_path, monkeypatch
):
    monkeypatch.setattr(http, "TLS_LIFE", 0.0)
    ca = tmp_path / "replaced.pem"
    ca.write_bytes(authority.ca.read_bytes())
    async with MarketingCloud(upstream_settings(tls_sandbox, ca), EventListener()) as cloud:
        token = await cloud.accounts.get(None)
        assert (await cloud.register(messenger(), token, _at_once)).status == 201
        ca.write_bytes(stranger.ca.read_bytes())
        answer = await cloud.register(messenger(), token, _at_once)
        assert "the TLS certificate is not valid" in answer.message
        ca.write_bytes(authority.ca.read_bytes() + stranger.ca.read_bytes())
        assert (await cloud.register(messenger(), token, _at_once)).status == 201


async def _at_once() -> None:
    """Nothing has to be ensure_lease first."""


@pytest.mark.parametrize("trusted", [True, False], ids=["strange authority", "no authority"])
async def test_a_marketing_cloud_that_nobody_vouches_for_gets_no_credentials(tls_sandbox, stranger, trusted):
    settings = upstream_settings(tls_sandbox, stranger.ca if trusted else None)
    async with MarketingCloud(settings, EventListener()) as cloud:
        with pytest.raises(TokenTrouble, match="the TLS certificate is not valid"):
            await cloud.accounts.get(None)
