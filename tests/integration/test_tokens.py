"""Tokens against the sandbox: cached by account, refreshed ahead, by one caller (contract §6)."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from tests.rig import until
from tests.sandbox_faults import Hang, Latency, Status
from worker.events import EventListener
from worker.marketing_cloud import accounts
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.sandbox import Sandbox
from worker.settings import Settings


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(client_id="id", client_secret="secret", token_lifetime=4) as server:
        yield server


@pytest.fixture
def settings(sandbox: Sandbox) -> Callable[..., Settings]:
    def make(**overrides: object) -> Settings:
        base = {
            "mc_auth_url": sandbox.url,
            "mc_rest_url": sandbox.url,
            "mc_client_id": "id",
            "mc_client_secret": "secret",
            "http_timeout": 2,
        }
        return Settings(**{**base, **overrides})

    return make


@pytest.fixture
async def cloud(settings: Callable[..., Settings]) -> AsyncIterator[MarketingCloud]:
    async with MarketingCloud(settings(), EventListener()) as client:
        yield client


async def test_one_token_serves_many_callers(sandbox, cloud):
    sandbox.faults.add(Latency(path="token", seconds=0.1))
    tokens = await asyncio.gather(*(cloud.accounts.get(None) for _ in range(100)))
    assert len({token.value for token in tokens}) == 1
    assert len(sandbox.history.token_calls) == 1


async def test_each_account_has_its_own(sandbox, settings):
    async with MarketingCloud(settings(mc_account_id="1"), EventListener()) as cloud:
        default, first, second = [await cloud.accounts.get(account) for account in (None, "1", "2")]
    assert default is first
    assert first is not second
    assert [call.account for call in sandbox.history.token_calls] == ["1", "2"]


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        ("MC1.rest.marketingcloudapis.com/", "https://mc1.rest.marketingcloudapis.com"),
        ("https://mc1.rest.marketingcloudapis.com/a?b", "https://mc1.rest.marketingcloudapis.com"),
        ("http://mc1.rest.marketingcloudapis.com", None),
        ("https://u@mc1.rest.marketingcloudapis.com", None),
        ("https://mc1.rest.marketingcloudapis.com:443", None),
        ("https://marketingcloudapis.com.example", None),
        ("x y.marketingcloudapis.com", None),
        ("a..marketingcloudapis.com", None),
        ("xn--a.marketingcloudapis.com", None),
        ("a\\b.marketingcloudapis.com", None),
    ],
)
async def test_a_token_may_name_a_host_of_marketing_cloud_and_nothing_else(sandbox, settings, instance, url):
    body = json.dumps({"access_token": "t", "rest_instance_url": instance})
    sandbox.faults.add(Status(path="token", status=200, body=body))
    async with MarketingCloud(settings(mc_rest_url=None), EventListener()) as cloud:
        if url:
            assert (await cloud.accounts.get(None)).rest_url == url
        else:
            with pytest.raises(TokenTrouble, match="set OTT_MC_REST_URL"):
                await cloud.accounts.get(None)


async def test_a_token_is_refreshed_ahead_while_the_old_one_is_used(sandbox, cloud):
    old = await cloud.accounts.get(None)
    sandbox.faults.add(Latency(path="token", seconds=0.3))

    async def refreshing() -> bool:
        await cloud.accounts.get(None)
        return cloud.accounts.default.fetching is not None

    await until(refreshing, "the refresh")
    assert await cloud.accounts.get(None) is old
    await until(lambda: len(sandbox.history.token_calls) == 2)

    async def renewed() -> bool:
        return await cloud.accounts.get(None) is not old

    await until(renewed, "the new token")


@pytest.mark.parametrize(
    "fault",
    [
        Status(path="token", status=401),
        Status(path="token", status=400),
        Status(path="token", status=429),
        Status(path="token", status=500),
        Status(path="token", status=200, body="not JSON"),
        Status(path="token", status=200, body='{"access_token": 7}'),
        Status(path="token", status=200, body='{"access_token": "line\\nbreak"}'),
        Status(path="token", status=302),
        Status(path="token", status=200, body="<" * 3_000_000),
        Hang(path="token"),
    ],
    ids=lambda fault: (
        f"{fault.kind}-{getattr(fault, 'status', '')}-{(getattr(fault, 'body', '') or '')[:22]}"
    ),
)
async def test_token_trouble_of_the_default_account_is_told_without_a_secret(sandbox, settings, fault):
    sandbox.faults.add(fault)
    async with MarketingCloud(settings(http_timeout=0.5), EventListener()) as cloud:
        with pytest.raises(TokenTrouble) as trouble:
            await cloud.accounts.get(None)
    assert "secret" not in str(trouble.value)


async def test_what_the_token_endpoint_says_is_told_without_the_credentials(sandbox, settings):
    body = (
        '{"error": "invalid_client", "error_description": "Client id-4711 with\\nsecret-0815 is no client"}'
    )
    sandbox.faults.add(Status(path="token", status=401, body=body))
    heard: list[str] = []

    class Heard(EventListener):
        def token_refused(self, account: str | None, result: str, why: str) -> None:
            heard.append(why)

    given = settings(mc_client_id="id-4711", mc_client_secret="secret-0815")
    async with MarketingCloud(given, Heard()) as cloud:
        with pytest.raises(TokenTrouble) as trouble:
            await cloud.accounts.get(None)
        said = "the token was refused: 401 invalid_client: Client *** with *** is no client"
        assert [str(trouble.value), cloud.accounts.default.trouble, *heard] == [said] * 3
        assert trouble.value.summary == "the token was refused: 401 invalid_client"


@pytest.mark.parametrize("life", ["NaN", "0", "-5", "Infinity"])
async def test_a_life_that_is_none_does_not_cost_a_token_for_each_request(sandbox, cloud, life):
    body = f'{{"access_token": "token", "expires_in": {life}}}'
    sandbox.faults.add(Status(path="token", status=200, body=body))
    for _ in range(5):
        await cloud.accounts.get(None)
    assert len(sandbox.history.token_calls) == 1


async def test_only_the_token_that_was_turned_down_is_dropped(cloud):
    first = await cloud.accounts.get(None)
    cloud.accounts.drop(None, first)
    second = await cloud.accounts.get(None)
    cloud.accounts.drop(None, first)
    assert await cloud.accounts.get(None) is second
    assert first is not second


async def test_wrong_credentials_are_known_before_a_request_comes_and_so_is_their_mending(
    sandbox, cloud, monkeypatch
):
    monkeypatch.setattr(accounts, "REFRESH_PAUSE", 0.05)
    sandbox.faults.add(Status(path="token", status=401))
    proving = asyncio.create_task(cloud.accounts.keep_default_token())
    await until(lambda: "401" in cloud.accounts.default.trouble, "the refusal")
    sandbox.heal()
    await until(lambda: cloud.accounts.default.has_token, "a token")
    assert not cloud.accounts.default.trouble
    proving.cancel()


async def test_the_old_token_lasts_while_the_refresh_fails(sandbox, cloud):
    old = await cloud.accounts.get(None)
    sandbox.faults.add(Status(path="token", status=503, count=1))

    async def tried() -> bool:
        assert await cloud.accounts.get(None) is old
        return len(sandbox.history.token_calls) == 2

    await until(tried, "the refresh")
