"""The broker objects of one prefix (contract §1): their names, their arguments and their declaration."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from worker.amqp.causes import object_errors
from worker.amqp.connection import Connection
from worker.amqp.queue import FORBIDDEN, QueueState, look
from worker.contract.words import CONTROL_KEY, REPLAY_KEY, REQUEST_KEY
from worker.errors import Problem, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

MOST_PARTITIONS = 64
CHECK_INTERVAL = 5.0  # seconds

# Each lost connection and each requeue counts as one delivery of a request. The limit stops a message that
# crashes the worker. The other requests are settled meanwhile (pipeline/lanes.py), so the limit can be far
# above the number of requeues in an outage of days.
DELIVERY_LIMIT = 1000
# Browsing dead letters counts as deliveries too, and must never reach a limit. -1 means unlimited on 4.x, but
# loses messages on 3.10.
NO_DELIVERY_LIMIT = 2**31 - 1

Arguments = dict[str, Any]


class Topology:
    """The names of everything below one prefix. `dead` is both an exchange and a queue."""

    def __init__(self, prefix: str) -> None:
        self.prefix = self.entry = prefix
        self.requests = f"{prefix}.requests"
        self.replies = f"{prefix}.replies"
        self.dead = f"{prefix}.dead"
        self.journal = f"{prefix}.journal"
        self.status = f"{prefix}.status"
        self.control = f"{prefix}.control"
        self.partition_log = f"{prefix}.partitions"
        streams = (self.journal, self.status, self.control, self.partition_log)
        self.own_queues = frozenset((self.requests, self.replies, self.dead, *streams))  # without partitions

    def partition(self, number: int) -> str:
        """The queue of a partition, counted from 1."""
        return f"{self.requests}.{number}"

    def partition_objects(self, partitions: int) -> list[str]:
        """The queues and the stream for so many partitions; none for one."""
        if partitions == 1:
            return []
        return [self.partition_log, *(self.partition(number) for number in range(1, partitions + 1))]

    def is_own(self, queue: str) -> bool:
        """Whether it is a queue of the worker, which a `reply_to` may not name (contract §4)."""
        number = queue.removeprefix(f"{self.requests}.")
        return queue in self.own_queues or (number != queue and number.isdecimal())

    def arguments(self, name: str, settings: Settings) -> Arguments:
        """The arguments of a queue or stream."""
        if name in (self.replies, self.dead):
            return {
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-delivery-limit": NO_DELIVERY_LIMIT,
            }
        # Age, bytes and segment bytes. RabbitMQ removes whole segments, so several must fit into the limits.
        # The control stream has no age, because a pause holds until an operator resumes; the partition log
        # needs none, because each record states everything that its writer knows.
        journal_bytes = settings.journal_max_bytes
        segment = max(1_000_000, min(100_000_000, journal_bytes // 10))
        streams = {
            self.journal: (settings.journal_max_age, journal_bytes, segment),
            self.status: ("1h", 20_000_000, 500_000),
            self.control: (None, 20_000_000, 2_000_000),
            self.partition_log: (None, 4_000_000, 500_000),
        }
        if name in streams:
            age, size, segment = streams[name]
            limits = {"x-max-length-bytes": size, "x-stream-max-segment-size-bytes": segment}
            return {"x-queue-type": "stream"} | limits | ({"x-max-age": age} if age else {})
        return {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-strategy": "at-least-once",
        }


async def ensure(connection: Connection, settings: Settings) -> None:
    """Declare every object, or with `OTT_DECLARE=false` only check that it exists. Raises TopologyError (one
    is missing, differs or may not be declared) or BrokerUnreachable."""
    async for name, error, _ in _each(connection, settings, passive=not settings.declare):
        # A stream keeps the limits with which it was first declared.
        keeps_limits = error is not None and error.problem is Problem.DIFFERS and name.startswith("stream ")
        if error is not None and not keeps_limits and not _is_optional(name, settings):
            raise error


async def missing(connection: Connection, settings: Settings) -> list[str]:
    """The missing objects, which the worker would declare; changes nothing. Raises TopologyError if one is
    missing and `OTT_DECLARE=false`, or BrokerUnreachable."""
    names = []
    async for name, error, _ in _each(connection, settings, passive=True):
        if error is not None and not settings.declare and not _is_optional(name, settings):
            raise error
        if error is not None and error.problem is Problem.MISSING:
            names.append(name)
    return names


async def partitions_from(connection: Connection, names: Topology, first: int) -> list[QueueState]:
    """The state of each partition from number `first` on, before the first one that is missing or that this
    user may not look at. Raises BrokerUnreachable."""
    found: list[QueueState] = []
    with contextlib.suppress(TopologyError):
        for number in range(first, MOST_PARTITIONS + 1):
            found.append(await look(connection, names.partition(number)))  # noqa: PERF401 - some are kept
    return found


@dataclass(slots=True)
class Watch:
    """Checks every object at intervals, and declares again what was deleted. It uses the consuming
    connection, because RabbitMQ keeps reading from that one during an alarm. `depths` holds the ready
    messages of `requests`, `replies` and `dead`, as far as they are known."""

    _settings: Settings
    _connection: Callable[[], Connection | None]
    _is_blocked: Callable[[], bool]
    _events: EventListener
    depths: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Check the objects at intervals, until cancelled."""
        known = None
        while True:
            current = self._connection()
            try:
                gone = [] if current is None else await self._look(current)
                # A worker that has just connected declares everything itself.
                if current is not None and current is known and self._settings.declare:
                    await self._declare(current, gone)
            except WorkerError as error:
                self._events.topology_wrong(str(error))
            if current is None or not current.is_open:
                self.depths = {}
            known = current
            await asyncio.sleep(CHECK_INTERVAL / 10 if current is None else CHECK_INTERVAL)

    async def _look(self, connection: Connection) -> list[str]:
        """Names of missing objects."""
        gone, depths = [], {}
        async for name, error, messages in _each(connection, self._settings, passive=True):
            if error is not None and error.problem is Problem.MISSING:
                gone.append(name)
            kind, _, queue = name.rpartition(".")
            if error is None and kind.startswith("queue ") and queue in ("requests", "replies", "dead"):
                depths[queue] = messages
        self.depths = depths
        return gone

    async def _declare(self, connection: Connection, gone: list[str]) -> None:
        """Declare everything again if an object is missing, or if a queue accepts no messages: then its
        binding may be missing, which RabbitMQ does not show."""
        if gone:
            self._events.topology_wrong(f"deleted, and declared again: {', '.join(gone)}")
        if gone or self._is_blocked():
            await ensure(connection, self._settings)


async def delete(connection: Connection, settings: Settings) -> None:
    """Delete every object of the prefix, with its messages. Raises BrokerUnreachable."""
    names = Topology(settings.prefix)
    async with connection.asked(f"{names.prefix} could not be deleted") as channel:
        for queue in (*names.own_queues, *map(names.partition, range(1, MOST_PARTITIONS + 1))):
            await channel.queue_delete(queue)
        for exchange in (names.entry, names.dead):
            await channel.exchange_delete(exchange)


def _objects(names: Topology, settings: Settings) -> list[tuple[str, ...]]:
    """Kind, name and arguments of each object, in the order of declaration: the dead letter queue comes
    before the requests queue that dead-letters into it."""
    numbered = [("queue", name) for name in names.partition_objects(settings.partitions)[1:]]
    return [
        ("exchange", names.dead, "fanout"),
        ("queue", names.dead),
        ("binding of", names.dead, names.dead, ""),
        ("queue", names.replies),
        *([("stream", names.journal)] if settings.journal else []),
        ("exchange", names.entry, "topic"),
        ("queue", names.requests),
        ("binding of", names.requests, names.entry, REQUEST_KEY),
        ("binding of", names.requests, names.entry, REPLAY_KEY),
        ("stream", names.status),
        ("stream", names.control),
        ("binding of", names.control, names.entry, CONTROL_KEY),
        *([("stream", names.partition_log), *numbered] if numbered else []),
    ]


async def _each(
    connection: Connection, settings: Settings, *, passive: bool
) -> AsyncGenerator[tuple[str, TopologyError | None, int]]:
    """Declare each object, with `passive` only check it (a binding cannot be checked). Yields its name, its
    error and its ready messages. Raises BrokerUnreachable."""
    names = Topology(settings.prefix)
    missing = "create it, or let the worker do so with OTT_DECLARE=true"
    forbidden = (
        FORBIDDEN if passive else "may not be declared by this user: grant it, or set OTT_DECLARE=false"
    )
    for kind, name, *more in _objects(names, settings):
        error, messages = None, 0
        try:
            async with connection.asked(f"The {kind} {name} could not be declared") as channel:
                with object_errors(f"{kind} {name}", missing, forbidden):
                    if kind == "exchange":
                        await channel.declare_exchange(name, *more, durable=True, passive=passive)
                    elif kind == "binding of":
                        if not passive:
                            await (await channel.get_queue(name, ensure=False)).bind(*more)
                    else:
                        arguments = None if passive else names.arguments(name, settings)
                        queue = await channel.declare_queue(
                            name, durable=True, passive=passive, arguments=arguments
                        )
                        messages = queue.declaration_result.message_count or 0
        except TopologyError as wrong:
            error = wrong
        yield f"{kind} {name}", error, messages


def _is_optional(name: str, settings: Settings) -> bool:
    """Whether a worker can run without it: it then publishes no status or obeys no orders."""
    names = Topology(settings.prefix)
    return name in (f"stream {names.status}", f"stream {names.control}", f"binding of {names.control}")
