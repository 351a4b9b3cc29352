"""`ott-worker sandbox` and `ott-worker schema`, as a user runs them."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.commands import begin, ott_worker
from tests.sandbox_client import SandboxClient


@asynccontextmanager
async def sandbox_command(*arguments: str) -> AsyncIterator[tuple[Any, str]]:
    """The running command and the line that it printed."""
    process = await begin(None, "sandbox", "--port=0", *arguments)
    try:
        async with asyncio.timeout(60):
            yield process, (await process.stdout.readline()).decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_sandbox_prints_one_line_and_ends_cleanly(number):
    async with sandbox_command() as (process, line):
        url = line.split("OTT_MC_REST_URL=")[1].split()[0]
        assert f"OTT_MC_AUTH_URL={url}" in line
        assert "OTT_MC_CLIENT_ID=sandbox OTT_MC_CLIENT_SECRET=sandbox" in line
        async with SandboxClient(url) as client:
            assert (await client.register()).status == 201
            process.send_signal(number)
            rest, errors = await process.communicate()
        assert (process.returncode, rest, errors) == (0, b"", b"")


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--token-lifetime", "no"], ["--storm"]])
async def test_wrong_usage_of_the_sandbox_is_exit_2(arguments):
    result = await ott_worker(None, "sandbox", *arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


async def test_schema_prints_json_schemas():
    result = await ott_worker(None, "schema")
    assert (result.code, result.err) == (0, "")
    assert {"Registration", "Result", "ErrorEnvelope"} <= set(json.loads(result.out)["$defs"])


async def test_schema_prints_an_asyncapi_document_for_a_prefix():
    result = await ott_worker(None, "schema", "--asyncapi", "--prefix", "shop")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["requests"]["address"] == "shop.requests"


async def test_the_sandbox_does_not_print_a_secret_that_it_was_given(monkeypatch):
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET", "canary-4711")
    async with sandbox_command() as (_, line):
        assert "Sandbox on http://127.0.0.1:" in line
        assert "canary" not in line
