"""What the pages tell, as JSON and as HTML."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.console.test_changes import dead, listed, post, refusal
from tests.rig import journal_records, messenger
from worker.broker.status import publish_order
from worker.console.sources import Cached
from worker.contract.status import Order
from worker.errors import BrokerUnreachable

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


async def test_the_overview_counts_what_was_settled_and_says_what_to_do(requester, console):
    await requester.ask(messenger("1"))
    await dead(requester, "2")

    def is_told(page: dict[str, Any]) -> bool:
        return all(sum(minute[name] for minute in page["lastHour"]) for name in ("registered", "rejected"))

    document = await console.becomes("/", is_told)
    assert document["queues"] == {"requests": 0, "replies": 0, "dead": 1}
    assert document["latencySeconds"]["median"] > 0
    assert [cause["count"] for cause in document["deadLetters"]] == [1]
    assert len(document["lastHour"]) == 60


async def test_a_script_that_asks_once_is_told_the_last_hour(requester, start_console):
    await requester.ask(messenger("1"))
    await journal_records(requester, 1)
    document = await (await start_console()).json("/")
    assert sum(minute["registered"] for minute in document["lastHour"]) == 1


async def test_a_pause_stands_out_where_no_worker_runs_and_nothing_waits(rig, requester, console):
    await rig.stop_first()
    await publish_order(rig.settings(), Order.now("pause", "maintenance", by="ann@host"))

    def is_told(page: dict[str, Any]) -> bool:
        return [each["state"] for each in page["situation"]] == ["no_worker", "paused"]

    document = await console.becomes("/", is_told)
    assert [each["stops"] for each in document["situation"]] == [False, True]
    assert 'class="banner bad"' in await console.html("/")


async def test_letters_are_filtered_by_the_url(rig, requester, console):
    rig.sandbox.faults.add(refusal(1))
    rejected = await dead(requester, "1", endpointUrl="https://example.com")
    invalid = [await dead(requester, page_id) for page_id in ("2", "3")]
    await listed(console, 3)

    async def found(query: str) -> list[str]:
        document = await console.json(f"/dead-letters?{query}")
        return [letter["id"] for letter in document["letters"]]

    everything = await console.json("/dead-letters")
    cause = next(group["cause"] for group in everything["groups"] if group["reason"] == "invalid")
    assert await found("") == [*invalid[::-1], rejected]
    assert await found("reason=rejected") == [rejected]
    assert await found(f"cause={cause}") == invalid[::-1]
    assert await found("resource=2") == [invalid[0]]
    assert await found("error=endpointurl+MUST") == invalid[::-1]
    assert await found("since=1h&until=0s") == [*invalid[::-1], rejected]
    assert await found("until=1h") == []
    assert await found("page=2") == await found("page=1")  # there is one page
    async with console.session.get("/dead-letters?since=yesterday") as response:
        assert response.status == 400


async def test_of_a_letter_that_is_gone_the_journal_tells(requester, console):
    request_id = await dead(requester, "1")
    await listed(console, 1)
    _, run = await post(console, "/runs", do="discard")
    await post(console, f"/runs/{run['run']}/start", why="a test", count="1")
    await listed(console, 0)
    async with console.session.get(
        f"/dead-letters/{request_id}", headers={"Accept": "application/json"}
    ) as response:
        assert response.status == 404
        assert "The journal shows its outcome" in (await response.json())["problem"]


async def test_the_journal_is_shown_from_its_end_backwards(requester, console):
    for number in range(3):
        await requester.ask(messenger("1", f"name {number}"))
    await requester.ask(messenger("2"))

    async def found(count: int) -> dict[str, Any]:  # a reply may come before its record
        return await console.becomes("/journal?resource=1", lambda page: len(page["records"]) == count)

    document = await found(3)
    completed = [record["completedAt"] for record in document["records"]]
    assert completed == sorted(completed, reverse=True)
    await requester.ask(messenger("1", "name 3"))
    document = await found(4)
    document = await console.json(f"/journal?resource=1&before={document['backTo'] + 1}")
    assert len(document["records"]) == 1


async def test_those_who_look_together_share_a_reading_and_its_trouble_is_told():
    readings = 0

    async def read() -> int:
        nonlocal readings
        readings += 1
        await asyncio.sleep(0.01)
        if readings == 2:
            raise BrokerUnreachable("gone")
        return readings

    kept = Cached(read, 0, life=60)
    await asyncio.gather(kept.refreshed(5), kept.refreshed(5))
    assert (kept.value, readings, kept.trouble) == (1, 1, "")
    await kept.refreshed(5)
    assert readings == 1
    kept.expire()
    await kept.refreshed(5)
    assert (kept.value, kept.trouble) == (1, "gone")
    kept.expire()
    await kept.refreshed(0)
    kept.expire()  # something was changed while it is read
    await kept.refreshed(5)
    assert (kept.value, readings, kept.trouble) == (4, 4, "")


async def test_what_is_older_than_five_seconds_or_could_not_be_read_again_is_not_called_the_present():
    async def read() -> int:
        return 1

    kept = Cached(read, 0, life=60)
    assert not kept.is_fresh
    await kept.refreshed(5)
    assert kept.is_fresh
    kept.trouble = "gone"
    assert not kept.is_fresh
    kept.trouble, kept.as_of = "", datetime.now(UTC) - timedelta(seconds=6)
    assert not kept.is_fresh
