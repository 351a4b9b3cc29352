"""The sandbox's OpenAPI document is valid, and true."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.rig import LINE
from tests.sandbox_client import CREDENTIALS, SandboxClient
from worker.sandbox import Sandbox
from worker.sandbox.openapi import openapi


@pytest.fixture
async def client() -> AsyncIterator[SandboxClient]:
    async with Sandbox() as sandbox, SandboxClient(sandbox.url) as connected:
        yield connected


def follows(document: Any, schema: dict[str, Any], components: dict[str, Any]) -> bool:
    return Draft202012Validator({**schema, "components": components}).is_valid(document)


async def test_the_served_document_is_valid_openapi(client: SandboxClient) -> None:
    document = (await client.call("GET", "/openapi.json")).json
    assert document["servers"] == [{"url": client.url}]
    validate(document)


async def test_answers_follow_the_document(client: SandboxClient) -> None:
    document = openapi(client.url)
    await client.register(json.dumps(LINE).encode())
    await client.call("POST", "/sandbox/faults", json=[{"kind": "latency", "seconds": 0}])
    authorization = {"Authorization": f"Bearer {client.token}"}
    as_json = {**authorization, "Content-Type": "application/json"}
    calls: list[tuple[str, str, str, int, dict[str, Any]]] = [
        ("POST", "/v2/token", "/v2/token", 200, {"json": CREDENTIALS}),
        ("POST", "/v2/token", "/v2/token", 401, {"json": {**CREDENTIALS, "client_id": "x"}}),
        ("POST", "/v2/token", "/v2/token", 400, {"data": b"x"}),
        ("POST", "/ott/v1/registration", "/ott/v1/registration", 400, {"data": b"{}", "headers": as_json}),
        ("POST", "/ott/v1/registration", "/ott/v1/registration", 401, {"data": b"{}"}),
        ("POST", "/ott/v1/registration", "/ott/v1/registration", 415, {"headers": authorization}),
        ("GET", "/ott/v1/registration/{platform}", "/ott/v1/registration/line", 200, {"headers": as_json}),
        ("GET", "/ott/v1/registration/{platform}", "/ott/v1/registration/x", 400, {"headers": as_json}),
        (
            "GET",
            "/ott/v1/registration/{platform}/{ottPropertyId}",
            "/ott/v1/registration/line/23493453984234345",
            200,
            {"headers": as_json},
        ),
        (
            "GET",
            "/ott/v1/registration/{platform}/{ottPropertyId}",
            "/ott/v1/registration/line/1",
            404,
            {"headers": as_json},
        ),
        ("GET", "/sandbox/history", "/sandbox/history", 200, {}),
        ("GET", "/sandbox/faults", "/sandbox/faults", 200, {}),
        ("GET", "/sandbox/registrations", "/sandbox/registrations", 200, {}),
        ("DELETE", "/sandbox/tokens", "/sandbox/tokens", 200, {}),
    ]
    for method, template, path, status, options in calls:
        response = await client.call(method, path, **options)
        assert response.status == status, (method, path)
        described = document["paths"][template][method.lower()]["responses"][str(status)]
        schema = described["content"]["application/json"]["schema"]
        assert follows(response.json, schema, document["components"]), (method, path, response.json)


async def test_every_path_of_the_document_is_served(client: SandboxClient) -> None:
    for template, operations in openapi(client.url)["paths"].items():
        path = template.replace("{platform}", "line").replace("{ottPropertyId}", "1")
        for method in operations:
            response = await client.call(method.upper(), path, headers={"Authorization": "Bearer x"})
            assert response.status in {200, 201, 204, 400, 401}, (method, path)


def test_the_fault_schema_knows_every_kind() -> None:
    schemas = openapi("http://localhost")["components"]["schemas"]
    validator = Draft202012Validator({**schemas["Faults"], "components": {"schemas": schemas}})
    for kind in ("hang", "reset", "half", "trickle", "garbage", "redirect"):
        assert validator.is_valid([{"kind": kind}])
    assert validator.is_valid({"kind": "status", "status": 503, "retryAfter": 3})
    assert not validator.is_valid([{"kind": "storm"}])
