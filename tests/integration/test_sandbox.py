"""The sandbox answers like Marketing Cloud, and is controlled from this machine alone. The faults that it
makes on request are held by the tests that use them."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.rig import LINE, MESSENGER, messenger, until
from tests.sandbox_client import SandboxClient
from tests.sandbox_faults import Status
from worker.contract.platforms import SECRET_FIELDS
from worker.contract.settlement import Resource
from worker.errors import UsageError
from worker.sandbox import Sandbox

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


async def test_a_token_has_the_fields_of_the_real_one(client):
    response = await client.get_token(account_id=7)
    assert response.status == 200
    assert (response.json["token_type"], response.json["expires_in"]) == ("Bearer", 1079)
    assert response.json["rest_instance_url"] == f"{client.url}/"
    assert "ott_channels_write" in response.json["scope"]


async def test_wrong_credentials_get_the_real_error_body(client):
    response = await client.get_token(client_secret="x")
    assert (response.status, response.json["error"]) == (401, "invalid_client")
    assert list(response.json) == ["error", "error_description", "error_uri"]
    response = await client.call("POST", "/v2/token", data=b"grant_type=client_credentials")
    assert (response.status, response.json["error"]) == (400, "invalid_request")


async def test_a_registration_is_answered_201_without_a_body_and_the_latest_wins(sandbox, client):
    for example in (MESSENGER, LINE):
        response = await client.register(json.dumps(example).encode())
        assert (response.status, response.body) == (201, b"")
    for name in ("first", "second"):
        await client.register(messenger(name=name))
    page = Resource(None, "messenger", PAGE)
    assert list(sandbox.registrations) == [page, Resource(None, "line", "23493453984234345")]
    assert sandbox.registrations[page].body["ottPlatformAttributes"]["pageName"] == "second"


async def test_an_invalid_registration_gets_the_apis_error_object(client):
    response = await client.register(messenger(endpointUrl=None))
    assert (response.status, response.json["errorcode"]) == (400, 10006)
    assert response.json["validationErrors"] == [
        {"message": "EndpointUrl must be provided", "errorcode": 10002, "documentation": ""}
    ]


@pytest.mark.parametrize("authorization", ["", "Bearer x", "Basic c2FuZGJveA=="])
async def test_a_call_without_a_good_token_is_not_authorized(sandbox, client, authorization):
    response = await client.register(b"not even JSON", Authorization=authorization)
    assert (response.status, response.json) == (401, NOT_AUTHORIZED)
    assert not sandbox.registrations


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_the_control_endpoints_answer_to_no_name_that_a_web_page_can_have(sandbox, client, method):
    sandbox.faults.add(Status(status=503))
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", ""):
        response = await client.call(method, "/sandbox/faults", json=[], headers={"Host": host})
        assert response.status in (400, 403)
        assert len(sandbox.faults) == 1
    for host in ("localhost:8081", "127.0.0.1", "[::1]:1", "sandbox:8081"):
        assert (await client.call("GET", "/sandbox/faults", headers={"Host": host})).status == 200
    response = await client.call(
        "POST", "/sandbox/faults", data=b'{"kind": "hang"}', headers={"Content-Type": "text/plain"}
    )
    assert (response.status, len(sandbox.faults)) == (415, 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/token", 405), ("GET", "/", 404), ("POST", "/ott/v1/registration/x", 596)],
)
async def test_what_is_not_there_is_answered_in_json(client, method, path, status):
    response = await client.call(method, path)
    assert response.status == status
    assert list(response.json) == ["message", "errorcode", "documentation"]


async def test_the_history_holds_what_came_in_order_and_no_secret(sandbox, client):
    secrets = dict.fromkeys(SECRET_FIELDS, "canary-4711")
    await client.register(messenger(name="a name", version=3, **secrets))
    await client.register(b"{}")
    shown = await client.call("GET", "/sandbox/history")
    calls = [(call["status"], call["resourceId"]) for call in shown.json]
    assert calls == [(200, None), (201, PAGE), (400, None)]
    attributes = shown.json[1]["body"]["ottPlatformAttributes"]
    assert (attributes["pageName"], attributes["version"]) == ("a name", 3)
    assert b"canary" not in shown.body


async def test_overlapping_calls_for_one_resource_can_be_told(sandbox, client):
    hang = [{"kind": "hang", "applied": True, "resourceId": PAGE, "count": 1}]
    assert (await client.call("POST", "/sandbox/faults", json=hang)).status == 201
    hanging = asyncio.create_task(client.register())
    await until(lambda: sandbox.registrations)
    await client.register()
    await client.register(messenger(page_id="another"))
    assert [call.in_flight for call in sandbox.history.registration_calls] == [0, 1, 0]
    hanging.cancel()
    await until(lambda: sandbox.history.registration_calls[0].finished_at, "the end of the hanging call")
    await client.register()
    assert sandbox.history[-1].in_flight == 0


async def test_a_taken_port_is_told_in_one_line(sandbox):
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"{port}[^\n]*$"):
        async with Sandbox(port=port):
            pass


async def test_a_rate_hits_its_share_of_the_calls_and_can_be_repeated():
    async def run(seed: int) -> list[int]:
        async with Sandbox(seed=seed) as sandbox, SandboxClient(sandbox.url) as client:
            sandbox.faults.add(Status(status=500, rate=0.3))
            return [(await client.register()).status for _ in range(60)]

    first = await run(7)
    assert 8 <= first.count(500) <= 30
    assert first == await run(7)


async def test_faults_are_added_shown_and_healed_over_http(client):
    faults = [{"kind": "status", "status": 503, "resourceId": PAGE}, {"kind": "latency", "seconds": 0}]
    assert (await client.call("POST", "/sandbox/faults", json=faults)).status == 201
    assert (await client.register()).status == 503
    shown = (await client.call("GET", "/sandbox/faults")).json
    assert [(fault["kind"], fault["hits"]) for fault in shown] == [("status", 1), ("latency", 1)]
    assert (await client.call("DELETE", "/sandbox/faults")).status == 204
    assert (await client.register()).status == 201


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"kind": "storm"}, "kind"),
        ({"kind": "status", "status": 5}, "status"),
        ({"kind": "hang", "cuont": 1}, "cuont"),
    ],
)
async def test_a_fault_that_cannot_be_is_refused_by_name(sandbox, client, fault, named):
    response = await client.call("POST", "/sandbox/faults", json=[fault])
    assert response.status == 400
    assert named in response.json["message"]
    assert not sandbox.faults
