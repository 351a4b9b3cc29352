"""How many messages wait in the queues of one prefix, asked for now and then."""

import asyncio
import time
from collections.abc import Callable

from worker.amqp.connection import Connection
from worker.amqp.queue import look
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, TopologyError

POLL_INTERVAL = 5.0  # seconds
BELIEVED_FOR = 30.0  # seconds; an older answer is no answer


class QueueDepths:
    """Ready messages of the requests, replies and dead queues.

    It asks on the connection that `connection()` names at that time: the consuming one, because RabbitMQ goes
    on reading from it during an alarm. `run` it in a task; it never raises.
    """

    def __init__(self, topology: Topology, connection: Callable[[], Connection | None]) -> None:
        self._queues = {"requests": topology.requests, "replies": topology.replies, "dead": topology.dead}
        self._connection = connection
        self._answers: dict[str, tuple[int, float]] = {}

    def known(self) -> dict[str, int]:
        """Messages by `requests`, `replies` and `dead`; one without a recent answer is left out."""
        oldest = time.monotonic() - BELIEVED_FOR
        return {name: messages for name, (messages, at) in self._answers.items() if at > oldest}

    async def run(self) -> None:
        """Ask over and over, until cancelled."""
        while True:
            connection = self._connection()
            if connection is None:
                await asyncio.sleep(POLL_INTERVAL / 10)  # so that a new one is used at once
                continue
            for name, queue in self._queues.items():
                try:
                    self._answers[name] = (await look(connection, queue)).ready, time.monotonic()
                except TopologyError:
                    self._answers.pop(name, None)
                except BrokerUnreachable:
                    break
            await asyncio.sleep(POLL_INTERVAL)
