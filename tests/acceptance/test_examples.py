"""The examples do what they say."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.commands import ott_worker
from tests.rig import Rig, environment

EXAMPLES = Path(__file__).parents[1] / "examples"


async def run(rig: Rig, *arguments: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        env=environment(rig.settings()),
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


async def test_register_tells_what_became_of_each_page(rig):
    await rig.start()
    out = await run(rig, EXAMPLES / "register.py")
    assert "messenger 1732555047025799 is registered\n" in out
    assert (
        "1732555047025800 is rejected: Please fix the following errors\n"
        "  10002 PageName must be provided\n" in out
    )


async def test_register_sync_tells_what_became_of_the_page(rig):
    await rig.start()
    assert await run(rig, EXAMPLES / "register_sync.py") == "messenger 1732555047025799 is registered\n"


async def test_publish_hands_a_registration_over(rig):
    requester = await rig.start()
    out = await run(rig, EXAMPLES / "publish.py")
    reply = await requester.take("replies")
    assert out == f"request {reply.correlation_id} is on its way\n"


@pytest.mark.parametrize(
    ("arguments", "pages"),
    [
        (["pages.csv", "--platform", "messenger"], ["1732555047025799", "1732555047025800"]),
        (["channels.jsonl"], ["23493453984234345", "23493453984234346"]),
    ],
    ids=["pages.csv", "channels.jsonl"],
)
async def test_the_example_files_can_be_submitted(rig, arguments, pages):
    await rig.start()
    ended = await ott_worker(rig.settings(), "submit", EXAMPLES / arguments[0], *arguments[1:])
    assert ended.out.endswith(": 2 registered.\n")
    assert sorted(call.resource_id or "" for call in rig.sandbox.history.registration_calls) == pages
