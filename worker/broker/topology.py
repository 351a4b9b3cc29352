"""The broker objects of one prefix (contract §1): their names, their arguments and their declaration."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiormq.exceptions

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Connection
from worker.contract.words import CONTROL_KEY, REPLAY_KEY, REQUEST_KEY
from worker.errors import BrokerUnreachable, Problem, TopologyError
from worker.settings import Settings

DECLARE_TIMEOUT = 30.0  # seconds
MOST_PARTITIONS = 64

# A request counts one delivery for each lost connection and each return to the queue. The limit stops a
# message that crashes the worker. Its neighbours are settled meanwhile (pipeline/suspects.py), so the limit
# can be far above the number of returns in an outage of days.
DELIVERY_LIMIT = 1000
# Looking at dead letters counts as deliveries too, and must never use a limit up. -1 would mean
# unlimited on 4.x and loses messages on 3.10.
NO_DELIVERY_LIMIT = 2**31 - 1
# A stream is trimmed by whole segments, so small ones make an hour of records an hour.
STATUS_AGE, STATUS_BYTES, STATUS_SEGMENT = "1h", 20_000_000, 500_000
# Without an age: a pause stands until somebody ends it.
CONTROL_BYTES, CONTROL_SEGMENT = 20_000_000, 2_000_000
# Each record states all that its writer knows, so the newest ones are enough.
PARTITION_LOG_BYTES, PARTITION_LOG_SEGMENT = 4_000_000, 500_000

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Topology:
    """The names of everything below one prefix."""

    prefix: str

    @property
    def entry(self) -> str:
        return self.prefix

    @property
    def requests(self) -> str:
        return f"{self.prefix}.requests"

    @property
    def replies(self) -> str:
        return f"{self.prefix}.replies"

    @property
    def dead(self) -> str:
        """Both the exchange and the queue."""
        return f"{self.prefix}.dead"

    @property
    def journal(self) -> str:
        return f"{self.prefix}.journal"

    @property
    def status(self) -> str:
        return f"{self.prefix}.status"

    @property
    def control(self) -> str:
        return f"{self.prefix}.control"

    @property
    def partition_log(self) -> str:
        return f"{self.prefix}.partitions"

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

    @property
    def own_queues(self) -> frozenset[str]:
        """All of them but the partitions."""
        return frozenset(
            {
                self.requests,
                self.replies,
                self.dead,
                self.journal,
                self.status,
                self.control,
                self.partition_log,
            }
        )

    def requests_arguments(self) -> Arguments:
        return {
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-strategy": "at-least-once",
        }

    def replies_arguments(self) -> Arguments:
        return {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-delivery-limit": NO_DELIVERY_LIMIT,
        }

    def dead_arguments(self) -> Arguments:
        return self.replies_arguments()

    def journal_arguments(self, settings: Settings) -> Arguments:
        return {
            "x-queue-type": "stream",
            "x-max-age": settings.journal_max_age,
            "x-max-length-bytes": settings.journal_max_bytes,
            "x-stream-max-segment-size-bytes": _segment_size(settings.journal_max_bytes),
        }

    def status_arguments(self) -> Arguments:
        return {
            "x-queue-type": "stream",
            "x-max-age": STATUS_AGE,
            "x-max-length-bytes": STATUS_BYTES,
            "x-stream-max-segment-size-bytes": STATUS_SEGMENT,
        }

    def control_arguments(self) -> Arguments:
        return {
            "x-queue-type": "stream",
            "x-max-length-bytes": CONTROL_BYTES,
            "x-stream-max-segment-size-bytes": CONTROL_SEGMENT,
        }

    def partition_log_arguments(self) -> Arguments:
        return {
            "x-queue-type": "stream",
            "x-max-length-bytes": PARTITION_LOG_BYTES,
            "x-stream-max-segment-size-bytes": PARTITION_LOG_SEGMENT,
        }

    @property
    def optional(self) -> frozenset[str]:
        """The objects that a worker can do without: it then publishes no status and takes no orders."""
        return frozenset({f"stream {self.status}", f"stream {self.control}", f"binding of {self.control}"})


def _segment_size(max_bytes: int) -> int:
    # A stream is trimmed by whole segments, so the limit holds only if several fit into it.
    return max(1_000_000, min(100_000_000, max_bytes // 10))


class _Differs(TopologyError):
    """The object exists with other arguments."""


async def ensure(connection: Connection, settings: Settings) -> None:
    """Make sure that every object is there: declare what is missing, or with `OTT_DECLARE=false` only
    check. Raises TopologyError (one is missing, differs or may not be declared) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    for name, step in _steps(names, settings, passive=not settings.declare):
        try:
            await _try(connection, name, step, passive=not settings.declare)
        except _Differs:
            # A stream's limits cannot be declared anew: it keeps the ones that it was made with.
            if not name.startswith("stream "):
                raise
        except TopologyError:
            if name not in names.optional:
                raise


async def missing(connection: Connection, settings: Settings) -> list[str]:
    """The objects that are not there and that the worker would declare; changes nothing. Raises
    TopologyError where one is missing and `OTT_DECLARE=false`, or BrokerUnreachable."""
    objects, names = Topology(settings.prefix), []
    for name, step in _steps(objects, settings, passive=True):
        try:
            await _try(connection, name, step, passive=True)
        except TopologyError:
            if not settings.declare and name not in objects.optional:
                raise
            names.append(name)
    return names


async def exists(connection: Connection, queue: str) -> bool:
    """Whether there is such a queue. Raises BrokerUnreachable."""
    try:
        await look(connection, queue)
    except TopologyError:
        return False
    return True


async def look(connection: Connection, queue: str) -> tuple[int, int]:
    """Ready messages and active consumers of a queue. Raises TopologyError (there is no such queue, or this
    user may not look at it) or BrokerUnreachable."""
    declared = await _try(
        connection,
        f"queue {queue}",
        lambda channel: channel.queue_declare(queue, passive=True),
        passive=True,
    )
    return declared.message_count or 0, declared.consumer_count or 0


async def delete_queue(connection: Connection, queue: str) -> int:
    """Delete a queue; the number of messages that were in it. Raises TopologyError where this user may not,
    or BrokerUnreachable."""
    try:
        deleted = await _try(connection, f"queue {queue}", lambda channel: channel.queue_delete(queue))
    except TopologyError:
        raise TopologyError(
            f"This user may not delete {queue}: it needs the right to configure it, as the provisioner has",
            Problem.FORBIDDEN,
        ) from None
    return int(deleted.message_count or 0)


async def delete(connection: Connection, settings: Settings) -> None:
    """Delete every object of the prefix, and all that is in it. Raises BrokerUnreachable."""
    names = Topology(settings.prefix)
    channel = await connection.channel()
    with broker_errors(f"{names.prefix} could not be deleted"):
        async with asyncio.timeout(DECLARE_TIMEOUT):
            for queue in (*names.own_queues, *map(names.partition, range(1, MOST_PARTITIONS + 1))):
                await channel.queue_delete(queue)
            for exchange in (names.entry, names.dead):
                await channel.exchange_delete(exchange)
            await channel.close()


Step = Callable[[Any], Awaitable[object]]


def _steps(names: Topology, settings: Settings, *, passive: bool) -> list[tuple[str, Step]]:
    def exchange(name: str, kind: str) -> tuple[str, Step]:
        return f"exchange {name}", lambda channel: channel.exchange_declare(
            name, exchange_type=kind, durable=True, passive=passive
        )

    def queue(name: str, arguments: Arguments) -> tuple[str, Step]:
        return f"queue {name}", lambda channel: channel.queue_declare(
            name, durable=True, passive=passive, arguments=None if passive else arguments
        )

    def binding(name: str, source: str, key: str) -> tuple[str, Step]:
        return f"binding of {name}", lambda channel: channel.queue_bind(name, source, routing_key=key)

    # The dead letter queue stands before the requests queue that dead-letters into it.
    steps = [exchange(names.dead, "fanout"), queue(names.dead, names.dead_arguments())]
    if not passive:
        steps.append(binding(names.dead, names.dead, ""))
    steps.append(queue(names.replies, names.replies_arguments()))
    if settings.journal:
        steps.append((f"stream {names.journal}", queue(names.journal, names.journal_arguments(settings))[1]))
    steps += [exchange(names.entry, "topic"), queue(names.requests, names.requests_arguments())]
    if not passive:
        steps += [binding(names.requests, names.entry, key) for key in (REQUEST_KEY, REPLAY_KEY)]
    for stream, arguments in (
        (names.status, names.status_arguments()),
        (names.control, names.control_arguments()),
    ):
        steps.append((f"stream {stream}", queue(stream, arguments)[1]))
    if not passive:
        steps.append(binding(names.control, names.entry, CONTROL_KEY))
    if settings.partitions > 1:
        steps.append(
            (
                f"stream {names.partition_log}",
                queue(names.partition_log, names.partition_log_arguments())[1],
            )
        )
        partitions = (names.partition(number) for number in range(1, settings.partitions + 1))
        steps += [queue(partition, names.requests_arguments()) for partition in partitions]
    return steps


async def _try(connection: Connection, name: str, step: Step, *, passive: bool = False) -> Any:
    channel = await connection.channel()
    with broker_errors(f"The {name} could not be declared"):
        try:
            async with asyncio.timeout(DECLARE_TIMEOUT):
                answer = await step(channel)
                await channel.close()
                return answer
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            if "home node" in str(error):  # RabbitMQ's words for a queue that exists and cannot be reached
                raise BrokerUnreachable(
                    f"The {name} is there, but its node in RabbitMQ is down: see rabbitmq-diagnostics"
                ) from None
            raise TopologyError(
                f"The {name} is missing: create it, or let the worker do so with OTT_DECLARE=true"
            ) from None
        except aiormq.exceptions.ChannelPreconditionFailed as error:
            raise _Differs(f"The {name} exists but differs: {_difference(error)}") from None
        except aiormq.exceptions.ChannelAccessRefused:
            raise TopologyError(
                f"The {name} may not be looked at by this user: from RabbitMQ 4.3 on that needs a permission "
                "on it. Grant write, which is the least"
                if passive
                else f"The {name} may not be declared by this user: grant it, or set OTT_DECLARE=false"
            ) from None


def _difference(error: BaseException) -> str:
    text = " ".join(str(error.args[-1] if error.args else error).split())
    return text.removeprefix("PRECONDITION_FAILED - ")[:300]
