"""One connection: everything about messages comes through our transport."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest

from tests.rig import until
from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import Delivery, Subscription
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


async def test_a_peer_that_is_not_rabbitmq_is_named(make_settings: Make) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(BrokerUnreachable, match="an HTTP server answers there"):
            await connect(make_settings(amqp_url=f"amqp://127.0.0.1:{port}/"), "test")
