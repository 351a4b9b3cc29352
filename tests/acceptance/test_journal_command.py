"""`ott-worker journal`: what became of requests (contract §8)."""

import asyncio
import json
import signal

import pytest

from tests.commands import begin, ott_worker
from tests.rig import Requester, Rig, messenger


@pytest.fixture
async def requester(rig: Rig) -> Requester:
    """Five requests for pages 0 to 4 were registered, and one for page 2 was turned down."""
    requester = await rig.start()
    for i in range(5):
        await requester.ask(messenger(f"page-{i}"), message_id=f"id-{i}")
    await rig.turn_down("page-2", "name", message_id="refused")
    return requester


async def test_the_last_records_are_printed_oldest_first(rig, requester):
    everything = await ott_worker(rig.settings(), "journal", "--json")
    assert [d["id"] for d in everything.documents] == [*(f"id-{i}" for i in range(5)), "refused"]
    last = await ott_worker(rig.settings(), "journal", "--json", "-n", "2")
    assert last.documents == everything.documents[-2:]
    for more in ([], ["--json"], ["--resource", "page-2"]):
        assert (await ott_worker(rig.settings(), "journal", "-n", "0", *more)).out == ""
    assert {"id", "status", "ottPlatformName", "resourceId", "receivedAt", "completedAt"} <= set(
        last.documents[0]
    )


async def test_a_request_has_a_fate(rig, requester):
    ended = await ott_worker(rig.settings(), "journal", "--id", "refused")
    assert "forbidden" in ended.out
    assert "page-2" in ended.out
    nothing = await ott_worker(rig.settings(), "journal", "--id", "nobody")
    assert (nothing.code, nothing.out) == (0, "The journal holds no such record.\n")


async def test_records_are_found_by_bare_id_status_reason_and_time(rig, requester):
    for words, found in (
        (["refused"], ["refused"]),
        (["id-1", "--id", "id-3"], ["id-1", "id-3"]),
        (["--status", "failed"], ["refused"]),
        (["--resource", "page-2"], ["id-2", "refused"]),
        (["--reason", "forbidden", "--status", "failed"], ["refused"]),
        (["--reason", "invalid"], []),
        (["--since", "1h", "--status", "registered", "-n", "1"], ["id-4"]),
        (["--since", "2036-01-01"], []),
    ):
        ended = await ott_worker(rig.settings(), "journal", "--json", *words)
        assert [d["id"] for d in ended.documents] == found, words


@pytest.mark.parametrize("option", ["--status", "--reason"])
async def test_a_word_that_is_none_of_these_is_told(rig, option):
    ended = await ott_worker(rig.settings(), "journal", option, "dead")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"{option} must be one of re" in ended.err or f"{option} must be one of in" in ended.err


async def test_follow_prints_what_is_settled_from_now_on(rig, requester):
    process = await begin(rig.settings(), "journal", "--follow", "--json", "-n", "1")
    assert process.stdout is not None
    seen = [json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["id"]]
    for name in ("later", "latest"):
        await requester.ask(messenger("p"), message_id=name)
        seen.append(json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["id"])
    assert seen == ["refused", "later", "latest"]
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (130, False)


async def test_no_journal_is_one_clear_line(rig, requester):
    ended = await ott_worker(rig.settings(prefix="test.nowhere"), "journal")
    assert (ended.code, ended.err.count("\n")) == (3, 1)
    assert "test.nowhere.journal is missing" in ended.err
