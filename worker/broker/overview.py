"""The state of one deployment, as the broker knows it now: workers, pause, queues (contract §9)."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from worker.amqp.connection import Connection
from worker.amqp.queue import look
from worker.amqp.stream_reader import StreamReader
from worker.broker.control_stream import read_orders_by
from worker.broker.status_stream import read_workers_by
from worker.broker.topology import Topology
from worker.contract.status import Order, Pause, WorkerStatus, standing_pause
from worker.errors import BrokerUnreachable, Problem, TopologyError

POLL_INTERVAL = 5.0  # seconds between looks at the depths of queues
BELIEVED_FOR = 30.0  # seconds; an older answer is no answer
REMEMBERED = timedelta(minutes=10)  # how long a worker that vanished without draining is listed


@dataclass(slots=True)
class Overview:
    """`queues` holds the messages that wait in `requests`, `replies` and `dead`, `consumers` how many take
    requests. `workers` are those that run; `lost` are those that fell silent without having stopped. `orders`
    are all that are kept, the oldest first. `problems` has a line for each thing that could not be read."""

    workers: list[WorkerStatus] = field(default_factory=list)
    lost: list[WorkerStatus] = field(default_factory=list)
    pause: Pause | None = None
    orders: list[Order] = field(default_factory=list)
    queues: dict[str, int] = field(default_factory=dict)
    consumers: int | None = None
    knows_workers: bool = False
    problems: list[str] = field(default_factory=list)


async def read_overview(connection: Connection, names: Topology) -> Overview:
    """Read the overview. What this user may not read is left out and named in `problems`. Raises
    BrokerUnreachable."""
    found = Overview()
    for name in ("requests", "replies", "dead"):
        with _told(found):
            found.queues[name], consumers = await look(connection, getattr(names, name))
            if name == "requests":
                found.consumers = consumers
    found.knows_workers = True  # without the stream no worker has ever run
    try:
        now = datetime.now(UTC)
        for each in await read_workers_by(StreamReader(connection, names.status), REMEMBERED):
            if not each.is_silent(now):
                found.workers.append(each)
            elif each.state != "draining":
                found.lost.append(each)
    except TopologyError as error:
        found.knows_workers = error.problem is not Problem.FORBIDDEN
        found.problems.append(str(error))
    with _told(found):
        found.orders = await read_orders_by(StreamReader(connection, names.control))
        found.pause = standing_pause(found.orders)
    return found


@contextlib.contextmanager
def _told(found: Overview) -> Iterator[None]:
    try:
        yield
    except TopologyError as error:
        found.problems.append(str(error))


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
