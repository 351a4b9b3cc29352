"""The connection to the broker goes wrong, on a wire of its own: nothing is lost, nothing overtakes."""

import aio_pika
import pytest

from tests.faults.faults import FAULTS
from tests.faults.world import endure

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEARTBEAT = 2  # seconds
RATE = 150  # requests a second


@pytest.mark.parametrize(
    ("name", "requests", "strikes"),
    [
        ("TCP reset", 300, 3),
        ("connection closed", 200, 2),
        ("half-closed connection", 150, 1),
        ("black hole", 200, 2),
        ("slow link", 300, 1),
        ("reply queue deleted", 200, 1),
    ],
)
async def test_a_connection_that_goes_wrong_loses_nothing(world, name, requests, strikes):
    accepted = world.proxy.accepted
    await endure(world, FAULTS[name], requests, strikes, RATE)
    await world.intact()
    if name in ("TCP reset", "connection closed", "half-closed connection"):
        assert world.proxy.accepted > accepted
        assert world.recoveries


async def test_a_reply_queue_that_is_full_is_not_followed(world):
    full = f"{world.prefix}.full"
    async with await aio_pika.connect(world.url) as connection:
        channel = await connection.channel()
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        await channel.declare_queue(full, durable=True, arguments=arguments)
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), full)
        await world.load.publish(world.plan(30), reply_to=full)
        await world.drained()
        await channel.queue_delete(full)
    await world.intact()
    assert all("'x-ott-reply-refused'" in reply.headers for reply in world.load.replies)
