"""What the benchmarks ask of RabbitMQ: a queue filled in order, and counted."""

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika

QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
IN_FLIGHT = 500  # publishes


async def fill(url: str, queue: str, message: Callable[[int], aio_pika.Message], count: int) -> None:
    """Put `count` messages into the queue."""
    async with await aio_pika.connect(url) as connection:
        exchange = (await connection.channel()).default_exchange
        for start in range(0, count, IN_FLIGHT):
            numbers = range(start, min(start + IN_FLIGHT, count))
            await asyncio.gather(*(exchange.publish(message(number), queue) for number in numbers))


async def count(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0
