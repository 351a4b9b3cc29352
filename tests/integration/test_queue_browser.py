"""Looking through a queue and removing from it, with windows so small that many are needed."""

import asyncio
from typing import Any

import aio_pika
import pytest

from tests.rig import until
from worker.amqp import frames
from worker.amqp import queue as queues
from worker.amqp.connection import Connection, RawChannel, connect
from worker.amqp.queue import QueueBrowser, depth, lock
from worker.broker.topology import Topology
from worker.errors import QueueInUse

COUNT = 200


@pytest.fixture
async def queue(connection: Connection, prefix: str) -> str:
    """A queue with messages 0 to 199."""
    name = Topology(prefix).dead
    await _fill(connection, name)
    return name


async def bodies(connection: Connection, queue: str, count: int = COUNT, window: int = 1000) -> list[int]:
    async with QueueBrowser(connection, queue, window=window) as browser:
        return [int(delivery.body) async for delivery in browser.look(count)]


async def test_a_look_with_many_windows_keeps_the_order(connection, queue):
    for window in (1, 3, 7, 50):
        assert await bodies(connection, queue, window=window) == list(range(COUNT))
    assert await bodies(connection, queue) == list(range(COUNT))


async def test_a_lost_connection_returns_all_in_order(connection, queue, make_settings):
    other = await connect(make_settings(), "test")
    browser = await QueueBrowser(other, queue, window=2).__aenter__()
    looking = browser.look(COUNT)
    for _ in range(90):
        await anext(looking)
    await other.close()
    await until(lambda: _is_whole(connection, queue), "what was held to come back")
    assert await bodies(connection, queue) == list(range(COUNT))


async def _is_whole(connection: Connection, queue: str) -> bool:
    return await depth(connection, queue) == COUNT


async def test_what_is_not_removed_stays_in_order(connection, queue):
    async with QueueBrowser(connection, queue, window=5) as browser:
        async for delivery in browser.take(COUNT, held=COUNT // 2):
            if int(delivery.body) % 2:
                await browser.remove(delivery)
    assert await bodies(connection, queue) == list(range(0, COUNT, 2))


async def test_more_that_stays_than_can_be_held_is_told(connection, queue, monkeypatch):
    monkeypatch.setattr(queues, "LARGEST_PREFETCH", 20)
    async with QueueBrowser(connection, queue) as browser:
        taking = browser.take(COUNT, held=COUNT)
        for i in range(20):
            assert int((await anext(taking)).body) == i
        with pytest.raises(QueueInUse, match="do not match"):
            await anext(taking)
    monkeypatch.undo()
    assert await bodies(connection, queue) == list(range(COUNT))


async def test_only_one_may_look(connection, queue, make_settings, monkeypatch):
    monkeypatch.setattr(queues, "LOCK_TIMEOUT", 0.3)
    other = await connect(make_settings(), "test")
    try:
        async with lock(connection, queue):
            with pytest.raises(QueueInUse, match="Another dead-letters command is running"):
                async with lock(other, queue, timeout=0.5):
                    pass
        async with lock(other, queue), QueueBrowser(other, queue) as browser:
            await anext(browser.look(1))
            await other.close()
        async with lock(connection, queue):
            pass
    finally:
        await other.close()


async def test_a_foreign_consumer_keeps_lookers_out(connection, queue, clean_broker, monkeypatch):
    monkeypatch.setattr(queues, "LOCK_TIMEOUT", 0.3)
    async with await aio_pika.connect(clean_broker) as client:
        channel = await client.channel()
        foreign = await channel.get_queue(queue, ensure=False)
        await foreign.consume(_leave)
        with pytest.raises(QueueInUse, match="Another consumer uses"):
            async with lock(connection, queue):
                pass


async def _leave(_: aio_pika.abc.AbstractIncomingMessage) -> None:
    pass


async def test_hundreds_removed_at_the_last_moment_are_gone(connection, queue):
    """The broker's channel drops acknowledgements that it keeps back when it is closed too soon. Without
    waiting for them this fails in one round of seven."""
    for _ in range(20):
        async with QueueBrowser(connection, queue) as browser:
            taken = [delivery async for delivery in browser.take(COUNT, held=COUNT)]
            acks = [frames.ack(browser._channel.number, delivery.tag) for delivery in taken[:-1]]
            connection.wire.write(b"".join(acks))
            browser._credit, browser._has_removed = browser._credit + len(acks), True
        assert await depth(connection, queue) == 1
        await _fill(connection, queue)


async def _fill(connection: Connection, queue: str) -> None:
    channel = await connection.raw_channel(confirms=True)
    await channel.queue_purge(queue)
    publishes = [channel.basic_publish(str(i).encode(), routing_key=queue) for i in range(COUNT)]
    await asyncio.gather(*publishes)
    await channel.close()
    await until(lambda: _is_whole(connection, queue), "the messages")


async def test_removing_that_stops_early_keeps_the_order(connection, queue):
    """With deliveries still on their way when it ends."""
    for _ in range(5):
        left = list(range(COUNT))
        async with QueueBrowser(connection, queue, window=5) as browser:
            taking = browser.take(COUNT, held=50)
            for _ in range(60):
                delivery = await anext(taking)
                if int(delivery.body) % 2:
                    await browser.remove(delivery)
                    left.remove(int(delivery.body))
        assert await depth(connection, queue) == len(left)
        assert await bodies(connection, queue, len(left)) == left
        await _fill(connection, queue)


async def test_what_arrives_while_others_are_removed_stays_behind_them(connection, queue):
    channel = await connection.raw_channel(confirms=True)
    last = COUNT

    async def publish() -> None:
        nonlocal last
        while True:
            await channel.basic_publish(str(last).encode(), routing_key=queue)
            last += 1

    publishing = asyncio.create_task(publish())
    for _ in range(10):
        async with QueueBrowser(connection, queue, window=20) as browser:
            taking = browser.take(30, held=20)
            for _ in range(10):
                await browser.remove(await anext(taking))
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    await channel.close()
    left = await bodies(connection, queue, last)
    assert left == sorted(left)
    assert left[0] == 100


async def test_a_queue_whose_leader_does_not_answer_is_not_taken_for_empty(connection, queue, monkeypatch):
    """RabbitMQ then answers a passive declare with no messages and no consumers."""
    declare, silent = RawChannel.queue_declare, 3

    async def sometimes(self: RawChannel, **more: Any) -> Any:
        nonlocal silent
        declared = await declare(self, **more)
        if more.get("passive") and silent:
            silent -= 1
            declared.message_count = declared.consumer_count = 0
        return declared

    monkeypatch.setattr(RawChannel, "queue_declare", sometimes)
    assert await depth(connection, queue) == COUNT
    assert await bodies(connection, queue) == list(range(COUNT))
