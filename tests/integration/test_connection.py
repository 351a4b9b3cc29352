"""One connection: everything about messages comes through our transport."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest
from yarl import URL

from tests.faults.proxy import Proxy
from tests.rig import until
from worker.amqp import connection as amqp_connection
from worker.amqp.causes import broker_errors
from worker.amqp.connection import Connection, RawChannel, connect
from worker.amqp.consumer import Delivery, Subscription
from worker.amqp.endpoints import Endpoint
from worker.amqp.queue import exists, look
from worker.amqp.transport import InterceptingTransport
from worker.broker import topology
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable
from worker.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
async def connection(make_settings: Make) -> AsyncIterator[Connection]:
    a_connection = await connect(make_settings(), "test")
    await topology.ensure(a_connection, make_settings())
    yield a_connection
    await a_connection.close()


async def test_a_client_library_that_ignores_the_transport_is_told_at_the_start(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be received through it, while the worker looked ready."""
    monkeypatch.setattr(InterceptingTransport, "is_used", False)
    with pytest.raises(BrokerUnreachable, match=r"aio-pika [\d.]+ does not use its transport_factory"):
        await connect(make_settings(), "test")


async def publish(url: str, prefix: str, *messages: tuple[str, str, bytes]) -> None:
    async with await aio_pika.connect(url) as client:
        channel = await client.channel()
        for exchange, key, body in messages:
            target = await channel.get_exchange(exchange) if exchange else channel.default_exchange
            await target.publish(aio_pika.Message(body), key)


async def test_a_delivery_tells_on_which_key_it_was_published(
    connection: Connection, clean_broker: str, prefix: str
) -> None:
    names = Topology(prefix)
    await publish(
        clean_broker,
        prefix,
        (names.entry, "request", b"1"),
        (names.entry, "replay", b"2"),
        ("", names.requests, b"3"),
    )
    deliveries: list[Delivery] = []
    subscription = Subscription(connection, names.requests, 10)
    await subscription.open(deliveries.append)
    await until(lambda: len(deliveries) == 3, "the deliveries")
    assert [(d.exchange, d.routing_key) for d in deliveries] == [
        (prefix, "request"),
        (prefix, "replay"),
        ("", names.requests),
    ]
    assert await subscription.close()


async def test_a_body_beyond_the_limit_is_not_kept_and_can_be_dead_lettered_by_the_broker(
    connection: Connection, clean_broker: str, prefix: str
) -> None:
    names = Topology(prefix)
    bodies = [b"a" * 300_000, b"b" * 200_000, b"c" * 1_000_000]
    await publish(clean_broker, prefix, *(("", names.requests, body) for body in bodies))
    deliveries: list[Delivery] = []
    subscription = Subscription(connection, names.requests, 10, max_body_bytes=200_000)
    await subscription.open(deliveries.append)
    await until(lambda: len(deliveries) == 3, "the deliveries")
    assert [(d.oversize, d.size, len(d.body)) for d in deliveries] == [
        (True, 300_000, 0),
        (False, 200_000, 200_000),
        (True, 1_000_000, 0),
    ]
    for delivery in deliveries:
        (subscription.reject if delivery.oversize else subscription.ack)(delivery)
    assert await subscription.close()

    letters: list[Delivery] = []
    dead = Subscription(connection, names.dead, 10)
    await dead.open(letters.append)
    await until(lambda: len(letters) == 2, "the dead letters")
    assert [letter.body for letter in letters] == [bodies[0], bodies[2]]
    await dead.close()


async def test_rejecting_and_acknowledging_in_one_turn_settles_each_as_it_was_meant(
    connection: Connection, clean_broker: str, prefix: str
) -> None:
    names = Topology(prefix)
    await publish(clean_broker, prefix, *(("", names.requests, b"%d" % i) for i in range(100)))
    deliveries: list[Delivery] = []
    subscription = Subscription(connection, names.requests, 200)
    await subscription.open(deliveries.append)
    await until(lambda: len(deliveries) == 100, "the deliveries")
    for delivery in reversed(deliveries):
        settle = subscription.reject if int(delivery.body) % 7 == 0 else subscription.ack
        settle(delivery)
        settle(delivery)
    assert await subscription.close()

    letters: list[Delivery] = []
    dead = Subscription(connection, names.dead, 200)
    await dead.open(letters.append)
    await until(lambda: len(letters) == 15, "the dead letters")
    assert sorted(int(letter.body) for letter in letters) == list(range(0, 100, 7))
    await dead.close()


async def test_an_answer_that_does_not_come_ends_the_connection(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the process of a queue has crashed."""

    async def silent(*_: object, **__: object) -> None:
        await asyncio.get_running_loop().create_future()

    connection = await connect(make_settings(), "test")
    monkeypatch.setattr(amqp_connection, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(RawChannel, "queue_declare", silent)
    with pytest.raises(BrokerUnreachable, match="could not be looked at: RabbitMQ does not answer"):
        await look(connection, "a queue")
    await connection.lost
    await connection.close()


async def test_closing_gives_up_on_a_peer_that_does_not_answer(
    make_settings: Make, clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "CLOSE_TIMEOUT", 0.2)
    async with Proxy.to(clean_broker) as proxy:
        connection = await connect(make_settings(amqp_url=proxy.url), "test")
        proxy.black_hole()
        async with asyncio.timeout(5):
            await connection.close()
        assert not connection.is_open
        proxy.heal()


@pytest.mark.filterwarnings("ignore:coroutine 'OneShotCallback:RuntimeWarning")
async def test_a_loop_that_ends_while_a_connection_is_being_closed_comes_to_its_end(
    make_settings: Make,
) -> None:
    """All tasks are cancelled then, those of the client library too, at any point of the closing."""
    settings = make_settings()

    async def leave(turns: int) -> None:
        connection = await connect(settings, "test")
        closing = asyncio.create_task(connection.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        del closing

    def loops() -> None:
        for turns in range(12):
            asyncio.run(leave(turns))

    thread = threading.Thread(target=loops, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


async def test_a_cancellation_is_not_lost_in_an_error_of_the_connection() -> None:
    """aiormq puts the connection's error in its place where both come at once."""

    async def work() -> None:
        with broker_errors("Reading"):
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                raise ConnectionError("closed") from None

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_questions_share_a_channel(connection: Connection, prefix: str) -> None:
    """aio-pika keeps 4 kB of each channel for as long as its connection lives."""
    for _ in range(5):
        assert not await exists(connection, prefix)  # closes the channel
    numbers = set()
    for _ in range(5):
        async with connection.asked("test") as channel:
            numbers.add((await channel.get_underlay_channel()).number)
    assert len(numbers) == 1


async def test_a_connection_that_never_opened_is_closed_quietly(make_settings: Make) -> None:
    """aio-pika closes it when nothing refers to it any more."""
    endpoint = Endpoint(URL("amqp://127.0.0.1:1"), "127.0.0.1", 1)
    connection = Connection(endpoint, InterceptingTransport("127.0.0.1", 1, None), "test")
    await connection.close()
