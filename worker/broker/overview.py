"""The state of one deployment, as the broker knows it now: workers, pause, queues (contract §9)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from worker.amqp.connection import Connection
from worker.amqp.queue import look
from worker.amqp.stream_reader import StreamReader
from worker.broker.control_stream import read_orders_by
from worker.broker.status_stream import read_workers_by
from worker.broker.topology import Topology
from worker.contract.control import Order, Pause, standing_pause
from worker.contract.status import WorkerStatus
from worker.errors import Problem, TopologyError

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
