"""The latest truth wins: requests that tell when what they say was true (contract §2)."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.rig import Requester, messenger
from tests.sandbox_faults import Status

ONE_BROKER = "How the journal is read on each version: test_replay_history.py."

NOW = datetime.now(UTC) - timedelta(minutes=5)


def as_of(seconds: float) -> dict[str, str]:
    """A header that tells a time some minutes ago, and so many seconds."""
    return {"x-ott-as-of": (NOW + timedelta(seconds=seconds)).isoformat()}


async def ask(
    requester: Requester, name: str, seconds: float, page: str = "p", **more: Any
) -> dict[str, Any]:
    return await requester.ask(messenger(page, name), headers=as_of(seconds), **more)


async def test_an_older_truth_that_comes_later_is_superseded(rig, requester):
    newer = await ask(requester, "Wednesday", 2)
    older = await ask(requester, "Monday", 1)
    assert (older["status"], older["supersededBy"]) == ("superseded", newer["requestId"])
    assert (older["asOf"], older["attempts"]) == (as_of(1)["x-ott-as-of"].replace("+00:00", "Z"), 0)
    assert rig.held("p") == "Wednesday"
    assert await requester.depth("dead") == 0
    assert (await ask(requester, "another page", 1, "q"))["status"] == "registered"


async def test_a_request_without_a_time_is_as_new_as_its_arrival_and_never_superseded(rig, requester):
    service = rig.services[0]
    assert (await requester.ask(messenger("p", "first")))["status"] == "registered"
    assert (await ask(requester, "future", 10**9))["status"] == "registered"  # counts as its arrival
    assert (await requester.ask(messenger("p", "last")))["status"] == "registered"
    assert (await ask(requester, "old", 0))["status"] == "superseded"
    assert rig.held("p") == "last"
    assert service.tools.replay_guard._index is not None


async def test_of_equal_times_the_queues_order_decides(rig, requester):
    for name in ("first", "second"):
        assert (await ask(requester, name, 1))["status"] == "registered"
    assert rig.held("p") == "second"


async def test_a_newer_truth_that_was_not_registered_supersedes_nothing(rig, requester):
    await rig.turn_down("p", "newer", headers=as_of(2))
    assert (await ask(requester, "older", 1))["status"] == "registered"


@pytest.mark.parametrize("loss", ["no journal", "the journal is gone"])
async def test_where_the_journal_cannot_tell_it_is_forwarded(rig, loss):
    requester = await rig.start(journal=loss != "no journal")
    await ask(requester, "newer", 2)
    if loss != "no journal":
        await rig.stop_first()
        await requester.channel.queue_delete(f"{requester.prefix}.journal")
        await rig.start()
    assert (await ask(requester, "older", 1))["status"] == "registered"


async def test_a_replay_is_judged_by_the_time_at_which_it_was_true(rig, requester):
    await ask(requester, "Wednesday", 2)
    await rig.turn_down("q", "Monday's page", headers=as_of(1))
    await rig.turn_down("p", "Friday", headers=as_of(3))
    letters = [await requester.take("dead") for _ in range(2)]
    assert [letter.headers["x-ott-as-of"] for letter in letters] == [as_of(n)["x-ott-as-of"] for n in (1, 3)]
    await ask(requester, "Thursday", 2.5)
    await ask(requester, "Tuesday", 2, "q")
    replies = [
        await requester.ask(
            letter.body, key="replay", headers=dict(letter.headers), message_id=letter.message_id
        )
        for letter in letters
    ]
    assert [reply["status"] for reply in replies] == ["superseded", "registered"]
    assert (rig.held("p"), rig.held("q")) == ("Friday", "Tuesday")


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_the_interleaving_the_latest_truth_is_registered_last(rig, seed, partitions):
    """Of each page a dozen requests in any order, a few of equal time, a few without a time, a few that are
    turned down; and the workers change in between."""
    chance = random.Random(seed)
    settings = rig.settings(partitions=partitions)
    first, _ = [await rig.start_worker(settings) for _ in range(2)]
    requester = await rig.requester_for(settings)
    rig.sandbox.faults.add(Status(path="registration", status=403, errorcode=20002, rate=0.2))
    pages = [str(10**9 + number) for number in range(12)]
    requests = [
        (page, f"{page} version {number}", chance.choice([None, *range(6)]))
        for page in pages
        for number in range(12)
    ]
    chance.shuffle(requests)
    ids = []
    for number, (page, name, seconds) in enumerate(requests):
        headers = {} if seconds is None else as_of(seconds)
        ids.append(await requester.publish(messenger(page, name), headers=headers))
        if number == len(requests) // 2:
            stopping = asyncio.create_task(rig.stop_worker(first))
    replies = [await requester.reply(each) for each in ids]
    await stopping

    newest: dict[str, tuple[str, int]] = {}
    names: dict[str, str] = {}
    for place, ((page, name, _), reply) in enumerate(zip(requests, replies, strict=True)):
        truth = (reply.get("asOf") or reply["receivedAt"], place)
        if reply["status"] == "registered":
            assert truth > newest.get(page, ("", 0)), "an older truth was registered after a newer one"
            newest[page], names[page] = truth, name
        elif reply["status"] == "superseded":
            assert truth < newest[page]
    assert {page: rig.held(page) for page in names} == names
    assert {reply["status"] for reply in replies} == {"registered", "superseded", "failed"}
