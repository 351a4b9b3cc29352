"""The sandbox answers like Marketing Cloud."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from tests.rig import LINE, MESSENGER, messenger, until
from tests.sandbox_client import SandboxClient
from worker.contract.registration import SECRET_FIELDS
from worker.errors import UsageError
from worker.sandbox import Sandbox
from worker.sandbox.faults import Scopes
from worker.sandbox.registry import Key

PAGE = "1732555047025799"
NOT_AUTHORIZED = {"message": "Not Authorized", "errorcode": 40004, "documentation": ""}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(account_ids={"7", "8"}) as running:
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


async def test_only_the_client_credentials_grant_is_known(client: SandboxClient) -> None:
    response = await client.get_token(grant_type="password")
    assert (response.status, response.json["error"]) == (400, "unsupported_grant_type")


@pytest.mark.parametrize("body", [b"", b"grant_type=client_credentials", b"[]"])
async def test_a_token_request_that_is_no_json_object_is_invalid(client: SandboxClient, body: bytes) -> None:
    response = await client.call("POST", "/v2/token", data=body)
    assert (response.status, response.json["error"]) == (400, "invalid_request")


async def test_an_unknown_account_gets_no_token(client: SandboxClient) -> None:
    assert (await client.get_token(account_id="9")).status == 400


@pytest.mark.parametrize("account", ["7", 7])
async def test_an_account_may_be_a_number_or_its_digits(
    sandbox: Sandbox, client: SandboxClient, account: str | int
) -> None:
    assert (await client.get_token(account_id=account)).status == 200
    assert sandbox.history.token_calls[-1].account == "7"


async def test_any_account_is_known_to_a_sandbox_that_was_told_none() -> None:
    async with Sandbox() as sandbox, SandboxClient(sandbox.url) as client:
        assert (await client.get_token(account_id="4711")).status == 200


async def test_a_token_ends_after_its_lifetime() -> None:
    async with Sandbox(token_lifetime=0.3) as sandbox, SandboxClient(sandbox.url) as client:
        assert (await client.register()).status == 201

        async def refused() -> bool:
            return (await client.register()).status == 401

        await until(refused, "the end of the token")


async def test_tokens_of_one_account_can_be_revoked(sandbox: Sandbox, client: SandboxClient) -> None:
    other = (await client.get_token(account_id="7")).json["access_token"]
    assert sandbox.revoke_tokens("7") == 1
    assert (await client.look("line", token=other)).status == 401
    assert (await client.register()).status == 201


# Registrations


@pytest.mark.parametrize(
    ("example", "platform", "resource"), [(MESSENGER, "messenger", PAGE), (LINE, "line", "23493453984234345")]
)
async def test_a_registration_is_answered_201_without_a_body(
    sandbox: Sandbox, client: SandboxClient, example: object, platform: str, resource: str
) -> None:
    response = await client.register(json.dumps(example).encode())
    assert (response.status, response.body) == (201, b"")
    assert list(sandbox.registrations) == [Key(None, platform, resource)]


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


async def test_a_malformed_body_is_10004(client: SandboxClient) -> None:
    response = await client.register(b'{"a": 1, "a": 1}')
    assert (response.status, response.json["errorcode"]) == (400, 10004)
    assert response.json["validationErrors"] == []


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer x", "Basic c2FuZGJveA=="])
async def test_a_call_without_a_good_token_is_not_authorized(
    sandbox: Sandbox, client: SandboxClient, authorization: str
) -> None:
    response = await client.register(b"not even JSON", Authorization=authorization)
    assert (response.status, response.json) == (401, NOT_AUTHORIZED)
    assert not sandbox.registrations


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_another_content_type_is_unsupported(
    sandbox: Sandbox, client: SandboxClient, content_type: str
) -> None:
    response = await client.register(**{"Content-Type": content_type})
    assert response.status == 415
    assert not sandbox.registrations


async def test_a_charset_beside_the_content_type_is_fine(client: SandboxClient) -> None:
    response = await client.register(**{"Content-Type": "application/json; charset=utf-8"})
    assert response.status == 201


async def test_the_latest_registration_wins(sandbox: Sandbox, client: SandboxClient) -> None:
    for name in ("first", "second", "third"):
        await client.register(messenger(name=name))
    entry = sandbox.registrations[Key(None, "messenger", PAGE)]
    assert entry.body["ottPlatformAttributes"]["pageName"] == "third"
    assert (entry.updates, entry.seq) == (3, sandbox.history[-1].seq)


async def test_a_refused_registration_overrides_nothing(sandbox: Sandbox, client: SandboxClient) -> None:
    await client.register(messenger(name="good"))
    await client.register(messenger(name="bad", isActive=7))
    entry = sandbox.registrations[Key(None, "messenger", PAGE)]
    assert entry.body["ottPlatformAttributes"]["pageName"] == "good"


async def test_accounts_have_registrations_of_their_own(sandbox: Sandbox, client: SandboxClient) -> None:
    await client.register(messenger(name="default"))
    client.token = (await client.get_token(account_id="7")).json["access_token"]
    await client.register(messenger(name="seven"))
    names = {
        key.account: entry.body["ottPlatformAttributes"]["pageName"]
        for key, entry in sandbox.registrations.items()
    }
    assert names == {None: "default", "7": "seven"}
    assert (await client.look("messenger")).json["count"] == 1


# Looking


async def test_a_registration_is_shown_with_booleans_and_without_secrets(client: SandboxClient) -> None:
    line = json.loads(json.dumps(LINE))
    line["ottPlatformAttributes"] |= {"isTransactional": 1, "isTestChannel": 0, "apiVersion": "v2.0"}
    await client.register(json.dumps(line).encode())
    response = await client.look("line/23493453984234345")
    assert response.status == 200
    assert response.json == {
        "ottPlatformName": "line",
        "ottPlatformAttributes": {
            "channelId": "23493453984234345",
            "channelName": "SFMC Engineers",
            "endpointUrl": "https://example.com/1732555047025799",
            "isTransactional": True,
            "isTestChannel": False,
            "isActive": True,
            "apiVersion": "v2.0",
        },
    }
    assert response.json["ottPlatformAttributes"]["isTransactional"] is True


async def test_a_list_shows_a_version_that_nobody_has_registered(client: SandboxClient) -> None:
    await client.register()
    (item,) = (await client.look("messenger")).json["items"]
    assert item["ottPlatformAttributes"]["apiVersion"] == "v2.0"
    assert "apiVersion" not in (await client.look(f"messenger/{PAGE}")).json["ottPlatformAttributes"]


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
    assert (await client.look("messenger")).status == 200
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


async def test_an_unknown_resource_is_404_with_30003(client: SandboxClient) -> None:
    response = await client.look("messenger/4711")
    assert (response.status, response.json["errorcode"]) == (404, 30003)


async def test_a_platform_is_listed_page_by_page(client: SandboxClient) -> None:
    for number in range(5):
        await client.register(messenger(page_id=str(number)))
    seen: list[str] = []
    response = await client.look("messenger?$page=1&$pagesize=2")
    assert list(response.json) == ["count", "page", "pageSize", "links", "items"]
    assert (response.json["count"], response.json["page"], response.json["pageSize"]) == (5, 1, 2)
    assert set(response.json["links"]) == {"self", "next"}
    while True:
        seen += [item["ottPlatformAttributes"]["pageId"] for item in response.json["items"]]
        following = response.json["links"].get("next")
        if following is None:
            break
        response = await client.look(following["href"].removeprefix("/ott/v1/registration/"))
    assert seen == ["0", "1", "2", "3", "4"]
    assert set(response.json["links"]) == {"self", "previous"}


async def test_a_page_behind_the_last_is_empty(client: SandboxClient) -> None:
    await client.register()
    response = await client.look("messenger?$page=9&$pagesize=10")
    assert (response.status, response.json["count"], response.json["items"]) == (200, 1, [])


@pytest.mark.parametrize("path", ["viber", "messenger?$page=0", "line?$page=x", "line?$pagesize=-1"])
async def test_a_list_that_cannot_be_is_a_validation_error(client: SandboxClient, path: str) -> None:
    response = await client.look(path)
    assert (response.status, response.json["errorcode"]) == (400, 10006)


@pytest.mark.parametrize("path", ["messenger", f"messenger/{PAGE}"])
async def test_looking_needs_a_token(client: SandboxClient, path: str) -> None:
    response = await client.look(path, token="wrong")
    assert (response.status, response.json) == (401, NOT_AUTHORIZED)


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


# ReplayGuard


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


async def test_the_history_keeps_only_the_newest_calls() -> None:
    async with Sandbox(history_limit=3) as sandbox, SandboxClient(sandbox.url) as client:
        for number in range(5):
            await client.register(messenger(page_id=str(number)))
        assert [call.resource_id for call in sandbox.history] == ["2", "3", "4"]
        assert [call.seq for call in sandbox.history] == [4, 5, 6]


async def test_a_taken_port_is_told_in_one_line(sandbox: Sandbox) -> None:
    port = int(sandbox.url.rpartition(":")[2])
    with pytest.raises(UsageError) as caught:
        async with Sandbox(port=port):
            pass
    assert str(port) in str(caught.value)
    assert "\n" not in str(caught.value)
