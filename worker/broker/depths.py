"""How many messages wait in the queues of one prefix, asked for now and then by passive declares."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiormq.exceptions

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Channel, Connection, close_channel
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable

POLL_INTERVAL = 5.0  # seconds
ANSWER_TIMEOUT = 5.0  # seconds
BELIEVED_FOR = 30.0  # seconds; an older answer is no answer


@dataclass(frozen=True, slots=True)
class _Depth:
    messages: int
    at: float


class QueueDepths:
    """Ready messages of the requests, replies and dead queues.

    It asks on a channel of its own, on the connection that `connection()` names at that time: the consuming
    one, because RabbitMQ goes on reading from it during an alarm. `run` it in a task; it never raises.
    """

    def __init__(self, topology: Topology, connection: Callable[[], Connection | None]) -> None:
        self._queues = {"requests": topology.requests, "replies": topology.replies, "dead": topology.dead}
        self._connection = connection
        self._asked_on: Connection | None = None
        self._channel: Channel | None = None
        self._answers: dict[str, _Depth] = {}

    def known(self) -> dict[str, int]:
        """Messages by `requests`, `replies` and `dead`; one without a recent answer is left out."""
        oldest = time.monotonic() - BELIEVED_FOR
        return {name: answer.messages for name, answer in self._answers.items() if answer.at > oldest}

    async def run(self) -> None:
        """Ask over and over, until cancelled."""
        while True:
            for name, queue in self._queues.items():
                await self._ask(name, queue)
            # Try again soon while there is no connection, so that a new one is used at once.
            await asyncio.sleep(POLL_INTERVAL if self._channel is not None else POLL_INTERVAL / 10)

    async def _ask(self, name: str, queue: str) -> None:
        try:
            channel = await self._open()
            if channel is None:
                return
            with broker_errors("No depth"):
                messages = await _depth(channel, queue)
        except BrokerUnreachable:
            await self._give_up()
            return
        if messages is not None:
            self._answers[name] = _Depth(messages, time.monotonic())
        else:
            self._channel = None
            self._answers.pop(name, None)

    async def _give_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            await close_channel(channel, ANSWER_TIMEOUT)

    async def _open(self) -> Channel | None:
        connection = self._connection()
        if connection is None or not connection.is_open:
            self._channel = None
        elif self._channel is None or self._channel.is_closed or connection is not self._asked_on:
            self._asked_on = connection
            self._channel = await connection.channel()
        return self._channel


async def _depth(channel: Channel, queue: str) -> int | None:
    """None where the queue is missing or forbidden, which closes the channel it was asked for on."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            declared = await channel.queue_declare(queue, passive=True)
    except aiormq.exceptions.AMQPChannelError:
        return None
    return declared.message_count or 0
