"""The broker objects of one prefix (contract §1): their names, their arguments and their declaration."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from aio_pika.abc import AbstractChannel

from worker.amqp.causes import object_errors
from worker.amqp.connection import Connection
from worker.amqp.queue import FORBIDDEN
from worker.contract.words import CONTROL_KEY, REPLAY_KEY, REQUEST_KEY
from worker.errors import BrokerUnreachable, Problem, TopologyError
from worker.events import EventListener
from worker.settings import Settings

MOST_PARTITIONS = 64
CHECK_INTERVAL = 5.0  # seconds

# A request counts one delivery for each lost connection and each return to the queue. The limit stops a
# message that crashes the worker. Its neighbours are settled meanwhile (pipeline/lanes.py), so the limit
# can be far above the number of returns in an outage of days.
DELIVERY_LIMIT = 1000
# Looking at dead letters counts as deliveries too, and must never use a limit up. -1 would mean
# unlimited on 4.x and loses messages on 3.10.
NO_DELIVERY_LIMIT = 2**31 - 1

Arguments = dict[str, Any]

# A stream is trimmed by whole segments, so small ones make an hour of records an hour.
STATUS_LIMITS: Arguments = {
    "x-max-age": "1h",
    "x-max-length-bytes": 20_000_000,
    "x-stream-max-segment-size-bytes": 500_000,
}
# Without an age: a pause stands until somebody ends it.
CONTROL_LIMITS: Arguments = {
    "x-max-length-bytes": 20_000_000,
    "x-stream-max-segment-size-bytes": 2_000_000,
}
# Each record states all that its writer knows, so the newest ones are enough.
PARTITION_LOG_LIMITS: Arguments = {
    "x-max-length-bytes": 4_000_000,
    "x-stream-max-segment-size-bytes": 500_000,
}


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
        self.own_queues = frozenset((self.requests, self.replies, self.dead, *streams))  # but the partitions

    def partition(self, number: int) -> str:
        """The queue of a partition, counted from 1."""
        return f"{self.requests}.{number}"

    def partition_objects(self, partitions: int) -> list[str]:
        """The queues and the stream that there are for so many partitions; none for one."""
        if partitions == 1:
            return []
        return [self.partition_log, *(self.partition(number) for number in range(1, partitions + 1))]

    def is_own(self, queue: str) -> bool:
        """Whether it is one of our own queues, which a `reply_to` may not name (contract §4)."""
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
        limits: dict[str, Arguments] = {
            self.journal: {
                "x-max-age": settings.journal_max_age,
                "x-max-length-bytes": settings.journal_max_bytes,
                "x-stream-max-segment-size-bytes": _segment_size(settings.journal_max_bytes),
            },
            self.status: STATUS_LIMITS,
            self.control: CONTROL_LIMITS,
            self.partition_log: PARTITION_LOG_LIMITS,
        }
        if name in limits:
            return {"x-queue-type": "stream"} | limits[name]
        return {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-strategy": "at-least-once",
        }

    @property
    def optional(self) -> frozenset[str]:
        """The objects that a worker can do without: it then publishes no status and takes no orders."""
        return frozenset({f"stream {self.status}", f"stream {self.control}", f"binding of {self.control}"})


def _segment_size(max_bytes: int) -> int:
    # A stream is trimmed by whole segments, so the limit holds only if several fit into it.
    return max(1_000_000, min(100_000_000, max_bytes // 10))


async def ensure(connection: Connection, settings: Settings) -> None:
    """Make sure that every object is there: declare what is missing, or with `OTT_DECLARE=false` only
    check. Raises TopologyError (one is missing, differs or may not be declared) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    for name, step in _steps(names, settings, passive=not settings.declare):
        try:
            await _try(connection, name, step, passive=not settings.declare)
        except TopologyError as error:
            # A stream's limits cannot be declared anew: it keeps the ones that it was made with.
            keeps_limits = error.problem is Problem.DIFFERS and name.startswith("stream ")
            if not keeps_limits and name not in names.optional:
                raise


async def missing(connection: Connection, settings: Settings) -> list[str]:
    """The objects that are not there and that the worker would declare; changes nothing. Raises
    TopologyError where one is missing and `OTT_DECLARE=false`, or BrokerUnreachable."""
    objects, names = Topology(settings.prefix), []
    for name, step in _steps(objects, settings, passive=True):
        try:
            await _try(connection, name, step, passive=True)
        except TopologyError as error:
            if not settings.declare and name not in objects.optional:
                raise
            if error.problem is Problem.MISSING:
                names.append(name)
    return names


async def keep_declared(
    settings: Settings,
    connection: Callable[[], Connection | None],
    is_blocked: Callable[[], bool],
    events: EventListener,
) -> None:
    """Declare again what was deleted while the worker runs, until cancelled. It asks on the connection that
    there is at that time. Where a queue of ours takes nothing, its binding may be gone, and RabbitMQ does not
    tell: so all is declared again."""
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        current = connection()
        if current is None or not settings.declare:
            continue
        try:
            gone = await missing(current, settings)
            if gone:
                events.topology_wrong(f"deleted, and declared again: {', '.join(gone)}")
            if gone or is_blocked():
                await ensure(current, settings)
        except (BrokerUnreachable, TopologyError) as error:
            events.topology_wrong(str(error))


async def delete(connection: Connection, settings: Settings) -> None:
    """Delete every object of the prefix, and all that is in it. Raises BrokerUnreachable."""
    names = Topology(settings.prefix)
    async with connection.asked(f"{names.prefix} could not be deleted") as channel:
        for queue in (*names.own_queues, *map(names.partition, range(1, MOST_PARTITIONS + 1))):
            await channel.queue_delete(queue)
        for exchange in (names.entry, names.dead):
            await channel.exchange_delete(exchange)


Step = Callable[[AbstractChannel], Awaitable[object]]


def _steps(names: Topology, settings: Settings, *, passive: bool) -> Iterator[tuple[str, Step]]:
    """What to declare, in this order; passively, only what can be looked at."""

    def exchange(name: str, kind: str) -> tuple[str, Step]:
        return f"exchange {name}", lambda channel: channel.declare_exchange(
            name, kind, durable=True, passive=passive
        )

    def queue(name: str) -> tuple[str, Step]:
        arguments = names.arguments(name, settings)
        kind = "stream" if arguments["x-queue-type"] == "stream" else "queue"
        return f"{kind} {name}", lambda channel: channel.declare_queue(
            name, durable=True, passive=passive, arguments=None if passive else arguments
        )

    def bindings(name: str, source: str, *keys: str) -> Iterator[tuple[str, Step]]:
        async def bind(channel: AbstractChannel, key: str) -> None:
            await (await channel.get_queue(name, ensure=False)).bind(source, key)

        for key in () if passive else keys:
            yield f"binding of {name}", partial(bind, key=key)

    # The dead letter queue stands before the requests queue that dead-letters into it.
    yield exchange(names.dead, "fanout")
    yield queue(names.dead)
    yield from bindings(names.dead, names.dead, "")
    yield queue(names.replies)
    if settings.journal:
        yield queue(names.journal)
    yield exchange(names.entry, "topic")
    yield queue(names.requests)
    yield from bindings(names.requests, names.entry, REQUEST_KEY, REPLAY_KEY)
    yield queue(names.status)
    yield queue(names.control)
    yield from bindings(names.control, names.entry, CONTROL_KEY)
    yield from map(queue, names.partition_objects(settings.partitions))


async def _try(connection: Connection, name: str, step: Step, *, passive: bool) -> None:
    missing = "create it, or let the worker do so with OTT_DECLARE=true"
    forbidden = (
        FORBIDDEN if passive else "may not be declared by this user: grant it, or set OTT_DECLARE=false"
    )
    async with connection.asked(f"The {name} could not be declared") as channel:
        with object_errors(name, missing, forbidden):
            await step(channel)
