"""The table of AMQP field types, held against the broker itself (contract §2): what RabbitMQ delivers is
read, and written back as it came."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial

import pytest

from tests.integration import amqp10
from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import Delivery, Subscription
from worker.amqp.ledger import Message
from worker.amqp.lone_channel import LoneChannel
from worker.amqp.properties import Properties, short_string
from worker.events import EventListener
from worker.settings import Settings

SEED = 19
MIXTURES = 100
Field = tuple[bytes, object]  # its type and encoding, and its value


def _sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _table(entries: dict[str, bytes]) -> bytes:
    return _sized(b"".join(short_string(name) + value for name, value in entries.items()))


SCALARS: dict[str, Field] = {
    "t": (b"t\1", True),
    "b": (b"b\xfe", -2),
    "B": (b"B\xfe", 254),
    "s": (b"s\xff\xfe", -2),
    "u": (b"u\xff\xfe", 65534),
    "I": (b"I\xff\xff\xff\xfe", -2),
    "i": (b"i\xff\xff\xff\xfe", 4294967294),
    "l": (b"l" + b"\xff" * 7 + b"\xfe", -2),
    "L": (b"L" + b"\0" * 7 + b"\2", 2),  # RabbitMQ 4.3 writes it as l
    "f": (b"f" + struct.pack(">f", 1.5), 1.5),
    "d": (b"d" + struct.pack(">d", 1.5), 1.5),
    "D": (b"D\2" + struct.pack(">I", 150), 1.5),
    "S": (b"S" + _sized(b"text"), "text"),
    "x": (b"x" + _sized(b"\0\xff"), b"\0\xff"),
    "T": (b"T" + struct.pack(">Q", 0), None),
    "V": (b"V", None),
}
NESTED: dict[str, Field] = {
    "A": (b"A" + _sized(b"".join(field for field, _ in SCALARS.values())), None),
    "F": (b"F" + _table({name: field for name, (field, _) in SCALARS.items()}), None),
}
FIELDS = SCALARS | NESTED


def _mixture(rng: random.Random, depth: int = 0) -> bytes:
    kind = rng.choice([*SCALARS, "A", "F"] if depth < 4 else [*SCALARS])
    inner = [_mixture(rng, depth + 1) for _ in range(rng.randrange(4))] if kind in "AF" else []
    if kind == "A":
        return b"A" + _sized(b"".join(inner))
    if kind == "F":
        return b"F" + _table({f"k{number}": field for number, field in enumerate(inner)})
    return SCALARS[kind][0]


class Mirror:
    """A queue: what is published into it byte for byte, as it is delivered."""

    def __init__(self, connection: Connection, publishing: LoneChannel, queue: str) -> None:
        self.connection = connection
        self.publishing = publishing
        self.queue = queue
        self.arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    async def through(self, properties: Properties) -> Properties:
        message = Message("", self.queue, properties, b"{}", external=True)
        async with asyncio.timeout(5):
            await self.publishing.send(message)
        return await self.next()

    async def next(self) -> Properties:
        async with asyncio.timeout(5):
            return (await self.arrived.get()).properties


@pytest.fixture
async def mirror(make_settings: Callable[..., Settings], prefix: str) -> AsyncIterator[Mirror]:
    settings = make_settings()
    connection = await connect(settings, "test")
    channel = await connection.raw_channel()
    queue = f"{prefix}.mirror"
    # With one active consumer, as all queues of requests: otherwise a message may be given to the consumer
    # that renews the lease, and come again with a count.
    arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    await channel.queue_declare(queue, durable=True, arguments=arguments)
    publishing = await LoneChannel.open("test", EventListener(), partial(connect, settings, "test"))
    mirror = Mirror(connection, publishing, queue)
    subscription = Subscription(connection, queue, 100)
    await subscription.open(
        lambda delivery: (subscription.ack(delivery), mirror.arrived.put_nowait(delivery))
    )
    yield mirror
    await subscription.close()
    await publishing.close()
    if connection.is_open:
        await channel.queue_delete(queue)
    await connection.close()


def _fields(properties: Properties) -> dict[str, bytes]:
    """Each header's encoding. RabbitMQ 4 puts them in an order of its own."""
    names = frozenset(properties.header_names())
    return {name: properties.changed(without=names - {name}).raw("headers") for name in names}


async def _is_passed_on(mirror: Mirror, delivered: Properties, names: Iterable[str]) -> None:
    """What was delivered is read whole, and is the same after it was passed on with one header more."""
    fields = _fields(delivered)
    assert set(fields) == set(names)
    again = _fields(await mirror.through(delivered.changed({"x-ott-more": 1}, message_id=None)))
    assert again.pop("x-ott-more")
    assert again == fields


@pytest.mark.parametrize("kind", FIELDS)
async def test_each_type_is_read_and_written_back_as_it_came(mirror: Mirror, kind: str) -> None:
    field, value = FIELDS[kind]
    around = {"before": SCALARS["t"][0], "it": field, "after": SCALARS["S"][0]}
    delivered = await mirror.through(Properties({"headers": _table(around)}))
    assert (delivered.header("before"), delivered.header("after")) == (True, "text")
    if value is not None:
        read = delivered.header("it")
        assert type(value)(read) == value  # type: ignore[call-arg]
    await _is_passed_on(mirror, delivered, around)


async def test_random_mixtures_are_passed_on(mirror: Mirror) -> None:
    rng = random.Random(SEED)
    for _ in range(MIXTURES):
        entries = {f"h{number}": _mixture(rng) for number in range(rng.randrange(1, 8))}
        delivered = await mirror.through(Properties({"headers": _table(entries)}))
        await _is_passed_on(mirror, delivered, entries)


async def test_what_an_amqp_1_0_publisher_sends_is_passed_on(
    mirror: Mirror, make_settings: Callable[..., Settings]
) -> None:
    if int(mirror.connection.server_version.split(".")[0]) < 4:
        pytest.skip("RabbitMQ speaks AMQP 1.0 by itself from 4.0 on")
    url = make_settings().amqp_url.get_secret_value()
    await asyncio.to_thread(amqp10.publish, url, mirror.queue, b"{}", amqp10.DELIVERABLE)
    await _is_passed_on(mirror, await mirror.next(), amqp10.DELIVERABLE)
