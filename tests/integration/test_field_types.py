"""The table of AMQP field types, held against the broker itself (contract §2): what RabbitMQ delivers is
read, and written back as it came."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.integration import amqp10
from tests.support.fields import SCALARS, Field, mixture, sized, table
from worker.amqp.confirm_channel import LoneChannel
from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import Delivery, Subscription
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.events import EventListener
from worker.settings import Settings

SEED = 19
MIXTURES = 100
NESTED: dict[str, Field] = {
    "A": (b"A" + sized(b"".join(field for field, _ in SCALARS.values())), None),
    "F": (b"F" + table({name: field for name, (field, _) in SCALARS.items()}), None),
}
FIELDS = SCALARS | NESTED


@dataclass
class Mirror:
    """A queue: what is published into it byte for byte, as it is delivered."""

    connection: Connection
    publishing: LoneChannel
    queue: str
    arrived: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)

    async def through(self, properties: Properties) -> Properties:
        message = Message("", self.queue, properties, b"{}", external=True)
        async with asyncio.timeout(20):
            await self.publishing.send(message)
        return await self.next()

    async def next(self) -> Properties:
        async with asyncio.timeout(20):
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
async def test_each_type_is_read_and_written_back_as_it_came(mirror, kind):
    field, value = FIELDS[kind]
    around = {"before": SCALARS["t"][0], "it": field, "after": SCALARS["S"][0]}
    delivered = await mirror.through(Properties({"headers": table(around)}))
    assert (delivered.header("before"), delivered.header("after")) == (True, "text")
    if value is not None:
        read = delivered.header("it")
        assert type(value)(read) == value
    await _is_passed_on(mirror, delivered, around)


async def test_random_mixtures_are_passed_on(mirror):
    rng = random.Random(SEED)
    for _ in range(MIXTURES):
        entries = {f"h{number}": mixture(rng) for number in range(rng.randrange(1, 8))}
        delivered = await mirror.through(Properties({"headers": table(entries)}))
        await _is_passed_on(mirror, delivered, entries)


async def test_what_an_amqp_1_0_publisher_sends_is_passed_on(mirror, make_settings):
    if int(mirror.connection.server_version.split(".")[0]) < 4:
        pytest.skip("RabbitMQ speaks AMQP 1.0 by itself from 4.0 on")
    url = make_settings().amqp_url.get_secret_value()
    await asyncio.to_thread(amqp10.publish, url, mirror.queue, b"{}", amqp10.DELIVERABLE)
    await _is_passed_on(mirror, await mirror.next(), amqp10.DELIVERABLE)
