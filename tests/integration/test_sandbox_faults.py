"""The sandbox fails on request, in every way that a real server does."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.rig import messenger, until
from tests.sandbox_client import SandboxClient
from worker.sandbox import Sandbox
from worker.sandbox.faults import (
    AnyFault,
    Garbage,
    Half,
    Hang,
    Latency,
    Redirect,
    Reset,
    ShortToken,
    Status,
    Trickle,
)

PAGE = "1732555047025799"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(seed=1) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[SandboxClient]:
    async with SandboxClient(sandbox.url) as connected:
        yield connected


async def statuses(client: SandboxClient, count: int, **attributes: str) -> list[int]:
    return [(await client.register(messenger(**attributes))).status for _ in range(count)]


async def test_a_status_can_be_asked_for_the_next_calls(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=503, count=2))
    assert await statuses(client, 4) == [503, 503, 201, 201]
    assert not sandbox.faults


async def test_an_error_answer_carries_what_was_asked_for(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(
        Status(status=429, errorcode=50100, message="Slow down", retry_after=3, body_retry_after=2.5)
    )
    response = await client.register()
    assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert response.json == {
        "message": "Slow down",
        "errorcode": 50100,
        "documentation": "",
        "retryAfter": 2.5,
    }


async def test_retry_after_may_be_a_date(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=503, retry_after="Mon, 23 Nov 2026 12:00:00 GMT"))
    assert (await client.register()).headers["Retry-After"] == "Mon, 23 Nov 2026 12:00:00 GMT"


async def test_an_error_answer_may_be_any_text(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=500, body="<html>Oops</html>"))
    assert (await client.register()).body == b"<html>Oops</html>"


async def test_an_error_answer_registers_nothing_unless_it_is_applied(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    sandbox.faults.add(Status(status=500, count=1), Status(status=500, count=1, applied=True))
    await client.register()
    assert not sandbox.registrations
    await client.register()
    assert sandbox.registrations


async def test_a_rate_hits_its_share_of_the_calls_and_can_be_repeated() -> None:
    async def run(seed: int) -> list[int]:
        async with Sandbox(seed=seed) as sandbox, SandboxClient(sandbox.url) as client:
            sandbox.faults.add(Status(status=500, rate=0.3))
            return await statuses(client, 100)

    first = await run(7)
    assert 15 <= first.count(500) <= 45
    assert first == await run(7)
    assert first != await run(8)


@pytest.mark.parametrize(
    "where",
    [{"resource_id": "other"}, {"platform": "line"}, {"account": "7"}, {"path": "token"}],
)
async def test_a_fault_hits_only_what_it_is_limited_to(
    sandbox: Sandbox, client: SandboxClient, where: dict[str, Any]
) -> None:
    sandbox.faults.add(Status(status=503, **where))
    assert (await client.register()).status == 201


async def test_a_fault_can_be_limited_to_a_resource_and_an_account(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    sandbox.faults.add(Status(status=503, platform="messenger", resource_id=PAGE, account="7"))
    client.token = (await client.get_token(account_id="7")).json["access_token"]
    assert await statuses(client, 1) == [503]
    assert await statuses(client, 1, page_id="another") == [201]


async def test_the_token_endpoint_fails_on_its_own(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=503, path="token"))
    assert (await client.get_token()).status == 503
    assert (await client.register()).status == 201


async def test_the_first_fault_that_hits_decides(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=500, count=1), Status(status=502))
    assert await statuses(client, 3) == [500, 502, 502]


async def test_healing_ends_all_faults(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=503), Hang())
    sandbox.heal()
    assert await statuses(client, 1) == [201]


@pytest.mark.parametrize("fault", [Latency(seconds=0.2), Latency(seconds=0.2, up_to=0.25)])
async def test_latency_delays_the_answer(sandbox: Sandbox, client: SandboxClient, fault: AnyFault) -> None:
    sandbox.faults.add(fault)
    started = time.monotonic()
    assert (await client.register()).status == 201
    assert time.monotonic() - started >= 0.2
    call = sandbox.history[-1]
    assert call.fault == "latency"
    assert call.finished_at is not None
    assert call.finished_at - call.arrived_at >= 0.19


async def test_latency_goes_before_another_fault(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Status(status=503, count=1), Latency(seconds=0.1))
    started = time.monotonic()
    assert (await client.register()).status == 503
    assert time.monotonic() - started >= 0.1


async def test_a_call_that_the_client_gives_up_while_it_waits_registers_nothing(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    sandbox.faults.add(Latency(seconds=60))
    call = asyncio.create_task(client.register())
    await until(lambda: sandbox.history.registration_calls)
    call.cancel()
    await until(lambda: sandbox.history[-1].finished_at, "the end of the call")
    assert sandbox.history[-1].status is None
    assert not sandbox.registrations


async def test_a_hanging_call_gets_no_answer(sandbox: Sandbox) -> None:
    sandbox.faults.add(Hang(path="registration"))
    async with SandboxClient(sandbox.url, timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            await client.register()
    await until(lambda: sandbox.history[-1].finished_at, "the end of the call")
    assert (sandbox.history[-1].fault, sandbox.history[-1].status) == ("hang", None)
    assert not sandbox.registrations


async def test_a_sandbox_with_hanging_calls_closes_at_once() -> None:
    async with Sandbox() as sandbox, SandboxClient(sandbox.url) as client:
        sandbox.faults.add(Hang())
        hanging = asyncio.create_task(client.register())
        await until(lambda: sandbox.history.registration_calls)
        started = time.monotonic()
        await sandbox.__aexit__(None, None, None)
        assert time.monotonic() - started < 5
        with pytest.raises(aiohttp.ClientError):
            await hanging


@pytest.mark.parametrize("applied", [False, True])
async def test_a_connection_is_reset_before_or_after_the_registration(
    sandbox: Sandbox, client: SandboxClient, *, applied: bool
) -> None:
    sandbox.faults.add(Reset(applied=applied, count=1))
    with pytest.raises(aiohttp.ClientOSError, match="reset"):
        await client.register()
    assert bool(sandbox.registrations) is applied
    assert (await client.register()).status == 201


async def test_half_an_answer_breaks_off(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Half(count=1))
    with pytest.raises(aiohttp.ClientPayloadError):
        await client.register()
    assert sandbox.registrations
    assert (await client.register()).status == 201


async def test_an_answer_trickles(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Trickle(seconds=0.002))
    started = time.monotonic()
    response = await client.register()
    assert (response.status, response.body) == (201, b"")
    assert time.monotonic() - started >= 0.1
    assert sandbox.registrations


async def test_a_trickling_answer_outlasts_an_impatient_client(sandbox: Sandbox) -> None:
    sandbox.faults.add(Trickle(seconds=1, path="registration"))
    async with SandboxClient(sandbox.url, timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            await client.register()


@pytest.mark.parametrize("size", [64, 5_000_000])
async def test_an_answer_can_be_garbage_of_any_size(
    sandbox: Sandbox, client: SandboxClient, size: int
) -> None:
    sandbox.faults.add(Garbage(status=400, size=size))
    response = await client.register()
    assert (response.status, len(response.body), response.json) == (400, size, None)


async def test_a_redirect_leads_elsewhere(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(Redirect(count=1), Redirect(status=302, location="http://127.0.0.1:9/"))
    response = await client.register()
    assert (response.status, response.headers["Location"]) == (307, "/ott/v1/registration")
    response = await client.register()
    assert (response.status, response.headers["Location"]) == (302, "http://127.0.0.1:9/")


async def test_a_token_can_end_earlier_than_it_says(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(ShortToken(seconds=0, count=1))
    response = await client.get_token()
    assert response.json["expires_in"] == 1079
    assert (await client.look("line", token=response.json["access_token"])).status == 401
    assert (await client.look("line", token=(await client.get_token()).json["access_token"])).status == 200


# Over HTTP


async def test_faults_can_be_added_shown_and_healed_over_http(client: SandboxClient) -> None:
    faults = [{"kind": "status", "status": 503, "resourceId": PAGE}, {"kind": "latency", "seconds": 0}]
    assert (await client.call("POST", "/sandbox/faults", json=faults)).status == 201
    assert (await client.register()).status == 503
    shown = (await client.call("GET", "/sandbox/faults")).json
    assert [(fault["kind"], fault["hits"]) for fault in shown] == [("status", 1), ("latency", 1)]
    assert (await client.call("DELETE", "/sandbox/faults")).status == 204
    assert (await client.call("GET", "/sandbox/faults")).json == []
    assert (await client.register()).status == 201


async def test_one_fault_needs_no_list(client: SandboxClient) -> None:
    assert (await client.call("POST", "/sandbox/faults", json={"kind": "hang"})).status == 201
    assert (await client.call("DELETE", "/sandbox/faults")).status == 204


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        ([{"kind": "storm"}], "kind"),
        ([{"kind": "status"}], "status"),
        ([{"kind": "status", "status": 5}], "status"),
        ([{"kind": "hang", "cuont": 1}], "cuont"),
        ([{"kind": "hang", "count": 0}], "count"),
        ("hang", "array"),
    ],
)
async def test_a_fault_that_cannot_be_is_refused_by_name(
    sandbox: Sandbox, client: SandboxClient, faults: object, named: str
) -> None:
    response = await client.call("POST", "/sandbox/faults", json=faults)
    assert response.status == 400
    assert named in response.json["message"]
    assert not sandbox.faults


async def test_tokens_can_be_revoked_over_http(client: SandboxClient) -> None:
    assert (await client.call("DELETE", "/sandbox/tokens")).json == {"revoked": 1}
    assert (await client.register()).status == 401


async def test_the_history_can_be_read_on_and_cleared_over_http(client: SandboxClient) -> None:
    for number in range(4):
        await client.register(messenger(page_id=str(number)))

    async def seen(query: str) -> list[str | None]:
        return [call["resourceId"] for call in (await client.call("GET", f"/sandbox/history{query}")).json]

    assert await seen("") == [None, "0", "1", "2", "3"]
    assert await seen("?limit=2") == ["2", "3"]
    assert await seen("?after=2&limit=2") == ["1", "2"]
    assert await seen("?limit=0") == []
    assert (await client.call("GET", "/sandbox/history?limit=x")).status == 400
    assert (await client.call("DELETE", "/sandbox/history")).status == 204
    assert await seen("") == []


async def test_registrations_can_be_read_and_cleared_over_http(client: SandboxClient) -> None:
    await client.register(messenger(name="one"))
    await client.register(messenger(name="two"))
    (entry,) = (await client.call("GET", "/sandbox/registrations")).json
    assert (entry["account"], entry["platform"], entry["resourceId"]) == (None, "messenger", PAGE)
    assert (entry["updates"], entry["body"]["ottPlatformAttributes"]["pageName"]) == (2, "two")
    assert (await client.call("DELETE", "/sandbox/registrations")).status == 204
    assert (await client.call("GET", "/sandbox/registrations")).json == []
