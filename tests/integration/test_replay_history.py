"""A replay never rolls a resource back: what the worker makes of one, case by case (contract §4, §7)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest

from tests.rig import Requester, Rig, messenger, until
from tests.sandbox_faults import Latency
from worker.amqp import stream_reader
from worker.amqp.connection import connect
from worker.amqp.stream_reader import Entry, StreamReader
from worker.broker.topology import Topology
from worker.contract.timestamps import ArrivalClock, now, text_of


async def replay(requester: Requester, *, force: bool = False) -> dict[str, Any]:
    """Replay the oldest dead letter and return the reply."""
    return await requester.reply(await publish_replay(requester, await requester.take("dead"), force=force))


async def publish_replay(
    requester: Requester, letter: aio_pika.abc.AbstractIncomingMessage, *, force: bool = False
) -> str:
    headers = {**letter.headers, **({"x-ott-replay-force": True} if force else {})}
    return await requester.publish(letter.body, key="replay", headers=headers, message_id=letter.message_id)


async def test_a_replay_is_forwarded_where_nothing_newer_was_registered(rig, requester):
    await rig.turn_down("p", "old")
    await requester.ask(messenger("other", "newer, but another page"))
    await requester.ask(messenger("p", "newer, but another account"), headers={"x-ott-account-id": "7"})
    assert (await replay(requester))["status"] == "registered"
    assert rig.held("p") == "old"


@pytest.mark.parametrize("newer_id", ["the-newer-one", "the-older-one"])
async def test_a_newer_registration_supersedes_a_replay(rig, requester, newer_id):
    await rig.turn_down("p", "old", message_id="the-older-one")
    newer = await requester.ask(messenger("p", "new"), message_id=newer_id)
    reply = await replay(requester)
    assert (reply["status"], reply["supersededBy"]) == ("superseded", newer["requestId"])
    assert rig.held("p") == "new"
    assert await requester.depth("dead") == 0


async def test_a_newer_request_that_is_still_queued_supersedes_a_replay_behind_it(rig, requester):
    await rig.turn_down("p", "old")
    letter = await requester.take("dead")
    rig.sandbox.faults.add(Latency(path="registration", resource_id="p", seconds=0.3))
    newer = await requester.publish(messenger("p", "new"))
    late = await publish_replay(requester, letter)
    reply, reply_to_newer = await requester.reply(late), await requester.reply(newer)
    assert requester.order[-2:] == [newer, late]
    assert (reply["status"], reply["supersededBy"]) == ("superseded", reply_to_newer["requestId"])
    assert rig.held("p") == "new"


async def test_dead_letters_of_one_resource_replayed_the_wrong_way_round_end_with_the_last(rig, requester):
    await rig.turn_down("p", "first")
    await rig.turn_down("p", "second")
    first = await requester.take("dead")
    assert (await replay(requester))["status"] == "registered"
    assert (await requester.reply(await publish_replay(requester, first)))["status"] == "superseded"
    assert rig.held("p") == "second"


async def test_a_restarted_worker_knows_what_the_one_before_registered(rig, requester):
    await rig.turn_down("p", "old")
    await requester.ask(messenger("p", "new"))
    await rig.stop_first()
    await rig.start()
    assert (await replay(requester))["status"] == "superseded"
    assert rig.held("p") == "new"


async def test_what_another_worker_registered_between_two_subscriptions_counts(rig, requester):
    """The first worker has the journal in memory, is cut off, and becomes active again."""
    settings = rig.settings()
    first = await rig.start_worker(settings)
    await rig.turn_down("q", "old")
    assert (await replay(requester))["status"] == "registered"
    await rig.turn_down("p", "old")
    letter = await requester.take("dead")
    second = next(service for service in rig.services if service is not first)
    active, other = (first, second) if first.tools.replay_guard._index else (second, first)
    subscription = active.intake.subscription
    assert subscription is not None
    await subscription.connection.close()
    await requester.ask(messenger("p", "new"))
    await until(lambda: active.intake.subscription, "the new subscription")
    await rig.stop_worker(other)
    assert (await requester.reply(await publish_replay(requester, letter)))["status"] == "superseded"
    assert rig.held("p") == "new"


@pytest.mark.parametrize("has_other", [False, True])
async def test_times_go_on_growing_on_a_machine_whose_clock_is_behind(rig, requester, monkeypatch, has_other):
    await rig.turn_down("p", "old")
    await rig.stop_first()
    if has_other:  # the last message of the journal is no worker's
        other = aio_pika.Message(b"", headers={"CC": [f"{requester.prefix}.journal"]})
        await requester.channel.default_exchange.publish(other, requester.queue.name)
    service = await rig.start_worker(rig.settings())
    monkeypatch.setattr(service.tools.clock, "_wall_clock", lambda: 1_000_000)
    newer = await requester.ask(messenger("p", "new"))
    assert newer["receivedAt"] > "2026"
    assert (await replay(requester))["status"] == "superseded"


async def test_without_a_journal_a_replay_is_refused_unless_forced(rig):
    requester = await rig.start(journal=False)
    await rig.turn_down("p", "old")
    letter = await requester.take("dead")
    refused = await requester.reply(await publish_replay(requester, letter))
    assert (refused["status"], refused["attempts"]) == ("failed", 0)
    assert "OTT_JOURNAL=false" in refused["message"]
    assert "--force" in refused["message"]
    again = await requester.take("dead")
    assert again.headers["x-ott-reason"] == "forbidden"
    assert again.headers["x-ott-received-at"] == letter.headers["x-ott-received-at"]
    assert again.body == letter.body
    forced = await publish_replay(requester, again, force=True)
    assert (await requester.reply(forced))["status"] == "registered"


async def test_a_replay_that_claims_to_be_ancient_is_refused(requester):
    await requester.ask(messenger("p", "new"))
    for claim in ("0001-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"):
        headers = {"x-ott-received-at": claim}
        reply = await requester.ask(messenger("q", "old"), key="replay", headers=headers)
        assert (reply["status"], reply["attempts"]) == ("failed", 0)
        reply = await requester.ask(messenger("p", "old"), key="replay", headers=headers)
        assert reply["status"] == "superseded"


async def test_replays_after_an_idle_while_are_all_judged_by_the_whole_journal(rig, requester, monkeypatch):
    """The index is dropped when idle. It is read anew, slowly, while replays of other pages ask for it."""
    service = rig.services[0]
    await requester.ask(messenger("first"))
    pages = [f"p{number}" for number in range(12)]
    for page in pages:
        await rig.turn_down(page, "old")
    monkeypatch.setattr("worker.pipeline.replay_guard.IDLE_TIMEOUT", 0.2)
    assert (await replay(requester))["status"] == "registered"
    guard = service.tools.replay_guard

    async def is_dropped() -> bool:
        await requester.ask(messenger("first"))
        return guard._index is None

    await until(is_dropped, "the index to be dropped")

    whole = StreamReader.read

    async def slowly(self: StreamReader, *args: Any, **more: Any) -> AsyncIterator[Entry]:
        async for entry in whole(self, *args, **more):
            await asyncio.sleep(0.02)
            yield entry

    monkeypatch.setattr(StreamReader, "read", slowly)
    letters = [await requester.take("dead") for _ in pages[1:]]
    ids = [await publish_replay(requester, letter) for letter in letters]
    replies = [await requester.reply(each) for each in ids]
    assert [(reply["status"], reply.get("message")) for reply in replies] == [("registered", None)] * 11


async def test_a_forced_replay_is_forwarded_over_a_newer_registration(rig, requester):
    await rig.turn_down("p", "old")
    await requester.ask(messenger("p", "new"))
    assert (await replay(requester, force=True))["status"] == "registered"
    assert rig.held("p") == "old"


async def test_a_journal_that_was_trimmed_past_the_request_refuses_its_replay(rig):
    requester = await rig.start(journal_max_bytes=1_000_000)
    await rig.turn_down("p", "old")
    await requester.ask(messenger("p", "new"))
    await trim_journal(rig, requester)
    refused = await replay(requester)
    assert (refused["status"], refused["attempts"]) == ("failed", 0)
    assert "does not reach back" in refused["message"]
    assert rig.held("p") == "new"


async def test_a_journal_that_is_gone_refuses_a_replay_and_stops_nothing_else(rig, requester):
    await rig.turn_down("p", "old")
    await requester.channel.queue_delete(f"{requester.prefix}.journal")
    refused = await replay(requester)
    assert refused["status"] == "failed"
    assert (await requester.ask(messenger("p", "new")))["status"] == "registered"


async def test_an_unreadable_journal_does_not_hold_up_requests(rig, requester, monkeypatch):
    await requester.ask(messenger("p"))
    await rig.stop_first()
    service = await rig.start_worker(rig.settings())
    monkeypatch.setattr("worker.amqp.stream_reader.connected", _hang)
    monkeypatch.setattr("worker.pipeline.replay_guard.CATCH_UP_TIMEOUT", 0.1)
    assert (await requester.ask(messenger("p")))["status"] == "registered"
    assert rig.events.of("journal_unreadable")
    assert service.intake.subscription is not None


@asynccontextmanager
async def _hang(*_: object) -> AsyncIterator[None]:
    await asyncio.get_running_loop().create_future()
    yield


async def test_a_replica_of_the_journal_that_shows_nothing_yet_is_waited_for(rig, requester, monkeypatch):
    """As where its node has just come back. A replay is not judged by less than what was confirmed."""
    await requester.ask(messenger("p"))
    name = Topology(requester.prefix).journal
    connection = await connect(rig.settings(), "test")
    reader = StreamReader(connection, name)

    async def mark() -> str:
        await requester.channel.default_exchange.publish(aio_pika.Message(b"", message_id="mark"), name)
        return "mark"

    await reader.catch_up(mark)
    take = stream_reader._Consumer._take

    async def late(consumer: Any, message: Any) -> None:
        await asyncio.sleep(2 * stream_reader.LOOKS * stream_reader.POLL_INTERVAL)
        await take(consumer, message)

    monkeypatch.setattr(stream_reader._Consumer, "_take", late)
    first, last = await reader.first(), await reader.last()
    assert first is not None
    assert last is not None
    assert (first.offset, last.offset) == (0, 1)
    await connection.close()


async def test_what_is_registered_as_reading_begins_counts_where_a_replica_lags_behind(
    rig, requester, monkeypatch
):
    """The replica shows the guard's mark, and nothing that came after it."""
    await requester.ask(messenger("before", "so that the worker has taken over"))
    dated = {"x-ott-as-of": text_of(now())}
    first, take, meanwhile = StreamReader.first, stream_reader._Consumer._take, iter([messenger("p", "new")])
    shown: list[int] = []

    async def first_and_more(reader: StreamReader) -> Any:
        entry = await first(reader)
        shown.append(reader._reach)
        for body in meanwhile:
            await requester.ask(body)
        return entry

    async def last(reader: StreamReader) -> Any:
        return [entry async for entry in reader.read(reader._reach)][-1]

    async def lagging(consumer: Any, message: Any) -> None:
        is_journal = consumer.stream.endswith(".journal")
        if not is_journal or not shown or message.headers[stream_reader.OFFSET_HEADER] <= shown[0]:
            await take(consumer, message)

    monkeypatch.setattr(StreamReader, "first", first_and_more)
    monkeypatch.setattr(StreamReader, "last", last)
    monkeypatch.setattr(stream_reader._Consumer, "_take", lagging)
    assert (await requester.ask(messenger("q"), headers=dated))["status"] == "registered"
    assert (await requester.ask(messenger("p", "old"), headers=dated))["status"] == "superseded"
    assert rig.held("p") == "new"


async def trim_journal(rig: Rig, requester: Requester) -> None:
    """Fill the journal until its first segment is gone."""
    connection = await connect(rig.settings(), "test")
    try:
        reader = StreamReader(connection, Topology(requester.prefix).journal)
        record = {
            "id": "filler",
            "status": "registered",
            "ottPlatformName": "messenger",
            "resourceId": "filler",
            "receivedAt": text_of(now()),
        }
        body = b"\n".join([json.dumps(record).encode()] * 450)
        for _ in range(100):
            filler = aio_pika.Message(body, headers={"x-ott-clock": time.time_ns() // 1000})
            for _ in range(10):
                await requester.channel.default_exchange.publish(filler, f"{requester.prefix}.journal")
            first = await reader.first()
            if first is not None and first.offset > 0:
                return
        raise AssertionError("the journal was not trimmed")
    finally:
        await connection.close()


@pytest.mark.parametrize("seconds_later", [5, 0], ids=["it stays behind", "it has caught up meanwhile"])
async def test_what_a_clock_that_is_behind_has_stamped_before_the_journal_answered_rolls_nothing_back(
    rig, requester, monkeypatch, seconds_later
):
    await requester.ask(messenger("before the letters", "so that the journal reaches back"))
    for page in ("p", "q"):
        await rig.turn_down(page, "old")
    await rig.stop_first()
    seconds = [5]
    behind = ArrivalClock(lambda: time.time_ns() // 1000 - seconds[0] * 1_000_000)
    monkeypatch.setattr("worker.service.ArrivalClock", lambda: behind)
    monkeypatch.setattr("worker.pipeline.replay_guard.CATCH_UP_TIMEOUT", 0.01)
    monkeypatch.setattr("worker.pipeline.replay_guard.RETRY_INTERVAL", 0.01)
    with monkeypatch.context() as silent:
        silent.setattr("worker.amqp.stream_reader.connected", _hang)
        silent.setattr("worker.pipeline.replay_guard.READ_TIMEOUT", 0.05)
        service = await rig.start_worker(rig.settings())
        assert (await requester.ask(messenger("p", "new")))["status"] == "registered"
        seconds[0] = seconds_later
        waiting = asyncio.create_task(replay(requester))
        await until(lambda: service.lanes == 1, "the replay, which waits for the journal")
    for refused in (await waiting, await replay(requester)):
        assert (refused["status"], refused["attempts"]) == ("failed", 0)
        assert "clocks" in refused["message"]
    assert rig.held("p") == "new"
