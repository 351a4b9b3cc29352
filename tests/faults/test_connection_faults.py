"""The connection to the broker goes wrong, on a wire of its own: nothing is lost, nothing overtakes."""

import aio_pika
import pytest

from tests.faults.faults import FAULTS, endure
from tests.faults.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEARTBEAT = 2  # seconds
RATE = 150  # requests a second


async def _endures(world: World, name: str, requests: int, strikes: int) -> None:
    await endure(world, FAULTS[name], requests, strikes, RATE)
    await world.intact()
    assert world.recoveries


async def test_tcp_resets_lose_nothing(world: World) -> None:
    await _endures(world, "TCP reset", 300, strikes=3)


async def test_connections_that_the_broker_closes_lose_nothing(world: World) -> None:
    accepted = world.proxy.accepted
    await _endures(world, "connection closed", 200, strikes=2)
    assert world.proxy.accepted > accepted


async def test_half_closed_connections_lose_nothing(world: World) -> None:
    await _endures(world, "half-closed connection", 150, strikes=1)


async def test_a_black_hole_loses_nothing_although_both_sides_give_up(world: World) -> None:
    await _endures(world, "black hole", 200, strikes=2)


async def test_a_slow_link_costs_time_only(world: World) -> None:
    await endure(world, FAULTS["slow link"], 300, strikes=1, rate=RATE)
    await world.intact()


async def test_a_reply_queue_that_is_missing_is_not_followed(world: World) -> None:
    await world.load.publish(world.plan(30), reply_to=f"{world.prefix}.nowhere")
    await world.drained()
    await world.intact()
    assert all("'x-ott-reply-refused': 'unroutable'" in reply.headers for reply in world.load.replies)


async def test_a_reply_queue_that_is_deleted_meanwhile_is_not_followed(world: World) -> None:
    await endure(world, FAULTS["reply queue deleted"], 200, strikes=1, rate=RATE)
    await world.intact()


async def test_a_reply_queue_that_is_full_is_not_followed(world: World) -> None:
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
