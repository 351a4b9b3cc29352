"""The sandbox answers like Marketing Cloud, and fails on request in every way that a real server does."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.rig import LINE, MESSENGER, messenger, until
from tests.sandbox_client import SandboxClient
from worker.contract.platforms import SECRET_FIELDS
from worker.contract.settlement import Resource
from worker.errors import UsageError
from worker.sandbox import Sandbox
from worker.sandbox.faults import AnyFault, Half, Hang, Latency, Reset, Scopes, ShortToken, Status

PAGE = "1732555047025799"
NOT_AUTHORIZED = {"message": "Not Authorized", "errorcode": 40004, "documentation": ""}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(account_ids={"7", "8"}, seed=1) as running:
        yield running


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[SandboxClient]:
    async with SandboxClient(sandbox.url) as connected:
        yield connected


# Tokens


async def test_a_token_has_the_fields_of_the_real_one(client: SandboxClient) -> None:
    response = await client.get_token()
    assert response.status == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["token_type"] == "Bearer"
    assert response.json["expires_in"] == 1079
    assert response.json["rest_instance_url"] == f"{client.url}/"
    assert "ott_channels_write" in response.json["scope"]


@pytest.mark.parametrize("wrong", [{"client_id": "x"}, {"client_secret": "x"}, {"client_secret": None}])
async def test_wrong_credentials_get_the_real_error_body(
    client: SandboxClient, wrong: dict[str, str]
) -> None:
    response = await client.get_token(**wrong)
    assert response.status == 401
    assert list(response.json) == ["error", "error_description", "error_uri"]
    assert response.json["error"] == "invalid_client"


@pytest.mark.parametrize("body", [b"", b"grant_type=client_credentials", b"[]"])
async def test_a_token_request_that_is_no_json_object_is_invalid(client: SandboxClient, body: bytes) -> None:
    response = await client.call("POST", "/v2/token", data=body)
    assert (response.status, response.json["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("account", ["7", 7])
async def test_an_account_may_be_a_number_or_its_digits(
    sandbox: Sandbox, client: SandboxClient, account: str | int
) -> None:
    assert (await client.get_token(account_id=account)).status == 200
    assert sandbox.history.token_calls[-1].account == "7"


# Registrations


@pytest.mark.parametrize(
    ("example", "platform", "resource"), [(MESSENGER, "messenger", PAGE), (LINE, "line", "23493453984234345")]
)
async def test_a_registration_is_answered_201_without_a_body(
    sandbox: Sandbox, client: SandboxClient, example: object, platform: str, resource: str
) -> None:
    response = await client.register(json.dumps(example).encode())
    assert (response.status, response.body) == (201, b"")
    assert list(sandbox.registrations) == [Resource(None, platform, resource)]


async def test_the_api_s_error_example_is_answered_as_printed(client: SandboxClient) -> None:
    attributes = {k: v for k, v in MESSENGER["ottPlatformAttributes"].items() if k != "endpointUrl"}
    response = await client.register(json.dumps({"ottPlatformAttributes": attributes}).encode())
    assert response.status == 400
    assert response.json == {
        "message": "Please fix the following errors",
        "errorcode": 10006,
        "documentation": "",
        "validationErrors": [
            {"message": "EndpointUrl must be provided", "errorcode": 10002, "documentation": ""},
            {"message": "OttPlatformName must be provided", "errorcode": 10002, "documentation": ""},
        ],
    }


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer x", "Basic c2FuZGJveA=="])
async def test_a_call_without_a_good_token_is_not_authorized(
    sandbox: Sandbox, client: SandboxClient, authorization: str
) -> None:
    response = await client.register(b"not even JSON", Authorization=authorization)
    assert (response.status, response.json) == (401, NOT_AUTHORIZED)
    assert not sandbox.registrations


async def test_the_latest_registration_wins(sandbox: Sandbox, client: SandboxClient) -> None:
    for name in ("first", "second", "third"):
        await client.register(messenger(name=name))
    entry = sandbox.registrations[Resource(None, "messenger", PAGE)]
    assert entry.body["ottPlatformAttributes"]["pageName"] == "third"
    assert (entry.updates, entry.seq) == (3, sandbox.history[-1].seq)


# Access


async def test_a_token_keeps_the_scopes_that_it_was_fetched_with(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    sandbox.faults.add(Scopes(scopes=("ott_channels_read",)))
    token = (await client.get_token()).json
    assert token["scope"] == "ott_channels_read"
    sandbox.heal()
    client.token = token["access_token"]
    refused = await client.register()
    assert (refused.status, refused.json["errorcode"]) == (403, 20001)
    client.token = (await client.get_token()).json["access_token"]
    assert (await client.register()).status == 201


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", ""])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_the_control_endpoints_answer_to_no_name_that_a_web_page_can_have(
    sandbox: Sandbox, client: SandboxClient, host: str, method: str
) -> None:
    sandbox.faults.add(Scopes())
    response = await client.call(method, "/sandbox/faults", json=[], headers={"Host": host})
    assert response.status in (400, 403)
    assert len(sandbox.faults) == 1


@pytest.mark.parametrize("host", ["localhost:8081", "127.0.0.1", "[::1]:1", "sandbox:8081", "a.localhost"])
async def test_the_control_endpoints_answer_to_names_of_this_machine(
    client: SandboxClient, host: str
) -> None:
    assert (await client.call("GET", "/sandbox/faults", headers={"Host": host})).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_faults_come_as_json_alone(sandbox: Sandbox, client: SandboxClient, kind: str) -> None:
    response = await client.call(
        "POST", "/sandbox/faults", data=b'{"kind": "hang"}', headers={"Content-Type": kind}
    )
    assert (response.status, len(sandbox.faults)) == (415, 0)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/token", 405),
        ("DELETE", "/ott/v1/registration", 405),
        ("GET", "/", 404),
        ("POST", "/ott/v1/registration/ott/v1/registration", 596),
    ],
)
async def test_what_is_not_there_is_answered_in_json(
    client: SandboxClient, method: str, path: str, status: int
) -> None:
    response = await client.call(method, path)
    assert response.status == status
    assert list(response.json) == ["message", "errorcode", "documentation"]


# History


async def test_the_history_tells_what_arrived_in_order(sandbox: Sandbox, client: SandboxClient) -> None:
    body = messenger(name="a name", version=3)
    await client.register(body)
    await client.register(b"{}")
    first, second = sandbox.history.registration_calls
    assert [call.seq for call in sandbox.history] == [1, 2, 3]
    assert (first.method, first.path, first.status) == ("POST", "/ott/v1/registration", 201)
    assert (first.account, first.platform, first.resource_id) == (None, "messenger", PAGE)
    assert first.sha256 == hashlib.sha256(body).hexdigest()
    assert first.finished_at is not None
    assert first.arrived_at <= first.finished_at <= second.arrived_at
    assert (second.status, second.platform, second.resource_id) == (400, None, None)


async def test_the_history_holds_names_and_unknown_fields_but_no_secret(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    secrets = dict.fromkeys(SECRET_FIELDS, "canary-4711")
    await client.register(messenger(name="a name", version=3, **secrets))
    shown = (await client.call("GET", "/sandbox/history")).body
    shown += (await client.call("GET", "/sandbox/registrations")).body
    assert b"canary" not in shown
    body = sandbox.history[-1].body
    assert body is not None
    attributes = body["ottPlatformAttributes"]
    assert (attributes["pageName"], attributes["version"]) == ("a name", 3)
    assert {attributes[name] for name in SECRET_FIELDS} == {"***"}


async def test_overlapping_calls_for_one_resource_can_be_told(
    sandbox: Sandbox, client: SandboxClient
) -> None:
    response = await client.call(
        "POST", "/sandbox/faults", json=[{"kind": "hang", "applied": True, "resourceId": PAGE, "count": 1}]
    )
    assert response.status == 201
    hanging = asyncio.create_task(client.register())
    await until(lambda: sandbox.registrations)
    await client.register()
    await client.register(messenger(page_id="another"))
    assert [call.in_flight for call in sandbox.history.registration_calls] == [0, 1, 0]
    hanging.cancel()
    await until(lambda: sandbox.history.registration_calls[0].finished_at, "the end of the hanging call")
    await client.register()
    assert sandbox.history[-1].in_flight == 0


async def test_a_taken_port_is_told_in_one_line(sandbox: Sandbox) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(UsageError) as caught:
        async with Sandbox(port=port):
            pass
    assert str(port) in str(caught.value)
    assert "\n" not in str(caught.value)


# Faults


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


async def test_a_hanging_call_gets_no_answer(sandbox: Sandbox) -> None:
    sandbox.faults.add(Hang(path="registration"))
    async with SandboxClient(sandbox.url, timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            await client.register()
    await until(lambda: sandbox.history[-1].finished_at, "the end of the call")
    assert (sandbox.history[-1].fault, sandbox.history[-1].status) == ("hang", None)
    assert not sandbox.registrations


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


async def test_a_token_can_end_earlier_than_it_says(sandbox: Sandbox, client: SandboxClient) -> None:
    sandbox.faults.add(ShortToken(seconds=0, count=1))
    response = await client.get_token()
    assert response.json["expires_in"] == 1079
    assert (await client.register(Authorization=f"Bearer {response.json['access_token']}")).status == 401
    token = (await client.get_token()).json["access_token"]
    assert (await client.register(Authorization=f"Bearer {token}")).status == 201


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
