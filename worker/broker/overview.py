"""The state of one deployment, as the broker knows it now: workers, pause, queues (contract §9)."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
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
RATE_BUDGET = 5.0  # seconds that reading the last hour of the journal may take
WINDOW = 500  # messages that are read at first; the next windows are twice as large each


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


@dataclass(frozen=True, slots=True)
class Settled:
    """Requests by status that were settled within `seconds`."""

    seconds: float
    counts: Mapping[str, int]

    @property
    def per_second(self) -> float:
        return sum(self.counts.values()) / self.seconds if self.seconds else 0.0


async def read_overview(connection: Connection, names: Topology) -> Overview:
    """Read the overview. What this user may not read is left out and named in `problems`. Raises
    BrokerUnreachable."""
    found = Overview()
    for name in ("requests", "replies", "dead"):
        with _told(found):
            found.queues[name], consumers = await look(connection, getattr(names, name))
            if name == "requests":
                found.consumers = consumers
    with _told(found) as told:
        now = datetime.now(UTC)
        for each in await read_workers_by(StreamReader(connection, names.status), REMEMBERED):
            if not each.is_silent(now):
                found.workers.append(each)
            elif each.state != "draining":
                found.lost.append(each)
    # Without the stream no worker has ever run.
    found.knows_workers = told.problem is not Problem.FORBIDDEN
    with _told(found):
        found.orders = await read_orders_by(StreamReader(connection, names.control))
        found.pause = standing_pause(found.orders)
    return found


@dataclass(slots=True)
class _Told:
    problem: Problem | None = None


@contextlib.contextmanager
def _told(found: Overview) -> Iterator[_Told]:
    told = _Told()
    try:
        yield told
    except TopologyError as error:
        told.problem = error.problem
        found.problems.append(str(error))


async def read_rates(connection: Connection, names: Topology) -> tuple[Settled, Settled]:
    """The requests settled in the last minute and in the last hour, counted from the journal. If an hour of
    it cannot be read in a few seconds, the second figure covers less than an hour. Raises TopologyError or
    BrokerUnreachable."""
    reader, now = StreamReader(connection, names.journal), datetime.now(UTC)
    minute: Counter[str] = Counter()
    hour: Counter[str] = Counter()
    oldest, hour_ago = now, now - timedelta(hours=1)
    newest, first = await reader.last(), await reader.first()
    end, step = (-1 if newest is None else newest.offset), WINDOW
    deadline = asyncio.get_running_loop().time() + RATE_BUDGET
    # Read backwards from the end, so that the newest records are read even if time runs out.
    while first is not None and end >= first.offset and oldest > hour_ago:
        if asyncio.get_running_loop().time() > deadline:
            return _settled(minute, 60.0), _settled(hour, (now - oldest).total_seconds())
        start = max(first.offset, end - step + 1)
        async for completed, status in _settlements(reader, start, end):
            oldest = min(oldest, completed)
            minute[status] += completed > now - timedelta(minutes=1)
            hour[status] += completed > hour_ago
        end, step = start - 1, step * 2
    return _settled(minute, 60.0), _settled(hour, 3600.0)


async def _settlements(reader: StreamReader, start: int, end: int) -> AsyncIterator[tuple[datetime, str]]:
    async with contextlib.aclosing(reader.read(start, reach=end)) as entries:
        async for entry in entries:
            if entry.offset > end:
                break
            for record in entry.records:
                with contextlib.suppress(ValueError):
                    yield datetime.fromisoformat(str(record.get("completedAt"))), str(record.get("status"))


def _settled(counts: Counter[str], seconds: float) -> Settled:
    return Settled(seconds, {status: count for status, count in counts.items() if count})
