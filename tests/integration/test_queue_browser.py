"""Looking through a queue and removing from it, with windows so small that many are needed."""

from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest

from tests.rig import until
from worker.broker import frames, queue_browser, topology
from worker.broker.connection import Connection, connect
from worker.broker.queue_browser import QueueBrowser, depth, lock
from worker.broker.topology import Topology
from worker.errors import QueueInUse, TopologyError
from worker.settings import Settings

COUNT = 200


@pytest.fixture
async def connection(make_settings: Callable[..., Settings]) -> AsyncIterator[Connection]:
    settings = make_settings()
    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    yield connection
    await connection.close()


@pytest.fixture
async def queue(connection: Connection, clean_broker: str, prefix: str) -> str:
    """A queue with messages 0 to 199."""
    name = Topology(prefix).dead
    async with await aio_pika.connect(clean_broker) as client:
        channel = await client.channel()
        for i in range(COUNT):
            await channel.default_exchange.publish(aio_pika.Message(str(i).encode()), name)
    return name


async def bodies(connection: Connection, queue: str, count: int = COUNT, window: int = 1000) -> list[int]:
    async with QueueBrowser(connection, queue, window=window) as browser:
        return [int(delivery.body) async for delivery in browser.look(count)]


async def test_a_look_with_many_windows_keeps_the_order(connection: Connection, queue: str) -> None:
    for window in (1, 3, 7, 50):
        assert await bodies(connection, queue, window=window) == list(range(COUNT))
    assert await bodies(connection, queue) == list(range(COUNT))


async def test_a_look_that_stops_early_keeps_the_order(connection: Connection, queue: str) -> None:
    for count in (1, 2, 9, 100):
        assert await bodies(connection, queue, count, window=2) == list(range(count))
    assert await bodies(connection, queue) == list(range(COUNT))


async def test_a_lost_connection_returns_all_in_order(
    connection: Connection, queue: str, make_settings: Callable[..., Settings]
) -> None:
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


async def test_what_is_not_removed_stays_in_order(connection: Connection, queue: str) -> None:
    async with QueueBrowser(connection, queue, window=5) as browser:
        async for delivery in browser.take(COUNT, held=COUNT // 2):
            if int(delivery.body) % 2:
                await browser.remove(delivery)
    assert await bodies(connection, queue) == list(range(0, COUNT, 2))


async def test_more_that_stays_than_can_be_held_is_told(
    connection: Connection, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_browser, "LARGEST_PREFETCH", 20)
    async with QueueBrowser(connection, queue) as browser:
        taking = browser.take(COUNT, held=COUNT)
        for i in range(20):
            assert int((await anext(taking)).body) == i
        with pytest.raises(QueueInUse, match="do not match lie before"):
            await anext(taking)
    monkeypatch.undo()
    assert await bodies(connection, queue) == list(range(COUNT))


async def test_only_one_may_look(
    connection: Connection,
    queue: str,
    make_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_browser, "LOCK_PATIENCE", 0.3)
    other = await connect(make_settings(), "test")
    try:
        async with lock(connection, queue):
            with pytest.raises(QueueInUse, match="Another dead-letters command is at work"):
                async with lock(other, queue):
                    pass
        async with lock(other, queue), QueueBrowser(other, queue) as browser:
            await anext(browser.look(1))
            await other.close()
        async with lock(connection, queue):
            pass
    finally:
        await other.close()


async def test_a_foreign_consumer_keeps_lookers_out(
    connection: Connection, queue: str, clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_browser, "LOCK_PATIENCE", 0.3)
    async with await aio_pika.connect(clean_broker) as client:
        channel = await client.channel()
        foreign = await channel.get_queue(queue, ensure=False)
        await foreign.consume(_leave)
        with pytest.raises(QueueInUse, match="Something else consumes"):
            async with lock(connection, queue):
                pass


async def _leave(_: aio_pika.abc.AbstractIncomingMessage) -> None:
    pass


async def test_a_missing_queue_is_told(connection: Connection) -> None:
    with pytest.raises(TopologyError, match="is missing"):
        await depth(connection, "test.nowhere")


async def test_hundreds_removed_at_the_last_moment_are_gone(connection: Connection, queue: str) -> None:
    """The broker's channel drops acknowledgements that it keeps back when it is closed too soon. Without
    waiting for them this fails in one round of seven."""
    for _ in range(20):
        async with QueueBrowser(connection, queue) as browser:
            taken = [delivery async for delivery in browser.take(COUNT, held=COUNT)]
            acks = [frames.ack(browser._channel.number, delivery.tag) for delivery in taken[:-1]]
            connection.write(b"".join(acks))
        assert await depth(connection, queue) == 1
        await _fill(connection, queue)


async def _fill(connection: Connection, queue: str) -> None:
    channel = await connection.channel()
    await channel.queue_purge(queue)
    for i in range(COUNT):
        await channel.basic_publish(str(i).encode(), routing_key=queue)
    await channel.close()
    await until(lambda: _is_whole(connection, queue), "the messages")
