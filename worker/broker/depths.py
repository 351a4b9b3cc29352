"""How many messages wait in the queues of one prefix, asked for now and then by passive declares."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiormq.exceptions

from worker.broker.connection import AMQP_ERRORS, Channel, Connection
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable

ASK_EVERY = 5.0  # seconds
ANSWER_TIMEOUT = 5.0  # seconds
BELIEVED_FOR = 30.0  # seconds; an older answer is no answer


@dataclass(frozen=True, slots=True)
class _Answer:
    messages: int
    at: float


class QueueDepths:
    """Ready messages of the requests, replies and dead queues.

    It asks on a channel of its own, on the connection that `connection()` names at that time: the consuming
    one, which RabbitMQ does not stop reading from during an alarm. `run` it in a task; it never raises.
    """

    def __init__(self, topology: Topology, connection: Callable[[], Connection | None]) -> None:
        self._queues = {"requests": topology.requests, "replies": topology.replies, "dead": topology.dead}
        self._connection = connection
        self._asked_on: Connection | None = None
        self._channel: Channel | None = None
        self._answers: dict[str, _Answer] = {}

    def known(self) -> dict[str, int]:
        """Messages by `requests`, `replies` and `dead`; one that has not been told lately is left out."""
        oldest = time.monotonic() - BELIEVED_FOR
        return {name: answer.messages for name, answer in self._answers.items() if answer.at > oldest}

    async def run(self) -> None:
        """Ask over and over, until cancelled."""
        while True:
            for name, queue in self._queues.items():
                await self._ask(name, queue)
            # Soon again while there is nobody to ask, so that a new connection is not told late.
            await asyncio.sleep(ASK_EVERY if self._channel is not None else ASK_EVERY / 10)

    async def _ask(self, name: str, queue: str) -> None:
        try:
            channel = await self._open()
            if channel is None:
                return
            async with asyncio.timeout(ANSWER_TIMEOUT):
                declared = await channel.queue_declare(queue, passive=True)
        except aiormq.exceptions.AMQPChannelError:
            self._channel = (
                None  # a queue that is missing or forbidden closes the channel it was asked for on
            )
            self._answers.pop(name, None)
        except (TimeoutError, BrokerUnreachable, *AMQP_ERRORS):
            await self._give_up()
        else:
            self._answers[name] = _Answer(declared.message_count or 0, time.monotonic())

    async def _give_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(TimeoutError, *AMQP_ERRORS):
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await channel.close()

    async def _open(self) -> Channel | None:
        connection = self._connection()
        if connection is None or not connection.is_open:
            self._channel = None
        elif self._channel is None or self._channel.is_closed or connection is not self._asked_on:
            self._asked_on = connection
            self._channel = await connection.channel()
        return self._channel
