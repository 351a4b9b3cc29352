"""Tokens against the sandbox: cached by account, refreshed ahead, by one caller (contract §6)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.rig import until
from worker.events import EventListener
from worker.marketing_cloud import token
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import AccountRefused, TokenTrouble
from worker.sandbox import Sandbox
from worker.sandbox.faults import Garbage, Hang, Latency, Status
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


async def test_one_token_serves_many_callers(sandbox: Sandbox, settings: Callable[..., Settings]) -> None:
    sandbox.faults.add(Latency(path="token", seconds=0.1))
    async with MarketingCloud(settings(), EventListener()) as cloud:
        tokens = await asyncio.gather(*(cloud.tokens.get(None) for _ in range(100)))
    assert len({token.value for token in tokens}) == 1
    assert len(sandbox.history.token_calls) == 1


async def test_each_account_has_its_own(sandbox: Sandbox, settings: Callable[..., Settings]) -> None:
    async with MarketingCloud(settings(mc_account_id="1"), EventListener()) as cloud:
        default, first, second = [await cloud.tokens.get(account) for account in (None, "1", "2")]
    assert default is first
    assert first is not second
    assert [call.account for call in sandbox.history.token_calls] == ["1", "2"]


async def test_a_token_is_refreshed_ahead_while_the_old_one_is_used(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    async with MarketingCloud(settings(), EventListener()) as cloud:
        old = await cloud.tokens.get(None)
        sandbox.faults.add(Latency(path="token", seconds=0.3))

        async def refreshing() -> bool:
            await cloud.tokens.get(None)
            return cloud.tokens._accounts[None].fetching is not None

        await until(refreshing, "the refresh")
        assert await cloud.tokens.get(None) is old
        await until(lambda: len(sandbox.history.token_calls) == 2)

        async def renewed() -> bool:
            return await cloud.tokens.get(None) is not old

        await until(renewed, "the new token")


async def test_the_old_token_lasts_while_the_refresh_fails(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    async with MarketingCloud(settings(), EventListener()) as cloud:
        old = await cloud.tokens.get(None)
        sandbox.faults.add(Status(path="token", status=503, count=1))

        async def tried() -> bool:
            assert await cloud.tokens.get(None) is old
            return len(sandbox.history.token_calls) == 2

        await until(tried, "the refresh")


async def test_account_id_is_sent_only_where_there_is_one_and_never_an_empty_scope(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    async with MarketingCloud(settings(), EventListener()) as cloud:
        await cloud.tokens.get(None)
        await cloud.tokens.get("7")
    assert [call.account for call in sandbox.history.token_calls] == [None, "7"]


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
        Garbage(path="token", status=200, size=3_000_000),
        Hang(path="token"),
    ],
    ids=lambda fault: (
        f"{fault.kind}-{getattr(fault, 'status', '')}-{(getattr(fault, 'body', '') or '')[:22]}"
    ),
)
async def test_token_trouble_of_the_default_account_is_told_without_a_secret(
    sandbox: Sandbox, settings: Callable[..., Settings], fault: Status
) -> None:
    sandbox.faults.add(fault)
    async with MarketingCloud(settings(http_timeout=0.5), EventListener()) as cloud:
        with pytest.raises(TokenTrouble) as trouble:
            await cloud.tokens.get(None)
    assert "secret" not in str(trouble.value)


@pytest.mark.parametrize("life", ["NaN", "0", "-5", "Infinity"])
async def test_a_life_that_is_none_does_not_cost_a_token_for_each_request(
    sandbox: Sandbox, settings: Callable[..., Settings], life: str
) -> None:
    body = f'{{"access_token": "token", "expires_in": {life}}}'
    sandbox.faults.add(Status(path="token", status=200, body=body))
    async with MarketingCloud(settings(), EventListener()) as cloud:
        for _ in range(5):
            await cloud.tokens.get(None)
    assert len(sandbox.history.token_calls) == 1


async def test_a_refused_account_is_not_asked_for_again_at_once(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    sandbox.faults.add(Status(path="token", account="666", status=401))
    async with MarketingCloud(settings(), EventListener()) as cloud:
        for _ in range(20):
            with pytest.raises(AccountRefused):
                await cloud.tokens.get("666")
        await cloud.tokens.get(None)
    assert [call.account for call in sandbox.history.token_calls] == ["666", None]


async def test_where_the_credentials_are_refused_no_account_is_blamed(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    async with MarketingCloud(settings(mc_client_secret="rotated"), EventListener()) as cloud:
        with pytest.raises(TokenTrouble):
            await cloud.tokens.get("7")


async def test_a_rotated_secret_file_is_taken_up(
    sandbox: Sandbox,
    settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "secret"
    file.write_text("wrong\n")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET_FILE", str(file))
    async with MarketingCloud(settings(mc_client_secret="wrong"), EventListener()) as cloud:
        with pytest.raises(TokenTrouble):
            await cloud.tokens.get(None)
        file.write_text("secret\n")
        assert await cloud.tokens.get(None)


async def test_only_the_token_that_was_turned_down_is_dropped(
    sandbox: Sandbox, settings: Callable[..., Settings]
) -> None:
    async with MarketingCloud(settings(), EventListener()) as cloud:
        first = await cloud.tokens.get(None)
        cloud.tokens.drop(None, first)
        second = await cloud.tokens.get(None)
        cloud.tokens.drop(None, first)
        assert await cloud.tokens.get(None) is second
    assert first is not second


async def test_an_account_is_not_blamed_for_credentials_that_were_revoked_meanwhile(
    sandbox: Sandbox, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default account's token still works, and proves nothing any more."""
    monkeypatch.setattr(token, "CREDENTIALS_CHECK_KEPT", 0.0)
    async with MarketingCloud(settings(), EventListener()) as cloud:
        held = await cloud.tokens.get(None)
        sandbox.faults.add(Status(path="token", status=401))
        with pytest.raises(TokenTrouble):
            await cloud.tokens.get("7")
        sandbox.heal()
        assert await cloud.tokens.get("7")
        assert await cloud.tokens.get(None) is held


async def test_wrong_credentials_are_known_before_a_request_comes_and_so_is_their_mending(
    sandbox: Sandbox, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token, "REFRESH_PAUSE", 0.05)
    sandbox.faults.add(Status(path="token", status=401))
    async with MarketingCloud(settings(), EventListener()) as cloud:
        proving = asyncio.create_task(cloud.tokens.keep_default_token())
        await until(lambda: "401" in cloud.tokens.trouble, "the refusal")
        sandbox.heal()
        await until(lambda: cloud.tokens.had, "a token")
        assert not cloud.tokens.trouble
        proving.cancel()
