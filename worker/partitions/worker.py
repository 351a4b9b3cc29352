"""The partitions of one worker (contract §10). It consumes each with a single active consumer, all on its
consuming connection.

RabbitMQ activates the consumer that subscribed first. So the workers divide the partitions by the order in
which they subscribe. A worker that learns of a better owner settles its deliveries and subscribes again,
behind the owner. An owner that receives nothing publishes a barrier with epoch 0 to its partition. Its
delivery shows the active consumer: the owner itself, or a worker that then steps back.

Each worker computes the owners from PREFIX.status. A mistake is harmless, because RabbitMQ delivers a
partition to one consumer at a time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import cache
from hashlib import blake2b

from pydantic import ValidationError

from worker.amqp.connection import Connection, pause
from worker.amqp.consumer import End, EndReason, Subscription
from worker.amqp.queue import exists
from worker.amqp.stream_reader import StreamReader
from worker.broker.topology import Topology, partitions_from
from worker.contract.status import WorkerStatus
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.partitions.log import PartitionLog
from worker.partitions.message import barrier
from worker.partitions.partition import PartitionJourneys
from worker.partitions.router import Router
from worker.pipeline.intake import Intake
from worker.pipeline.journey import Journeys, Tools

RETRY_INTERVAL = 1.0  # seconds between attempts to consume a partition
SPREAD_INTERVAL = 0.5  # seconds between computations of the owners
SUBSCRIBED_WITHIN = 2.0  # seconds in which a new worker subscribes to all partitions
PATIENCE = (2.0, 60.0)  # seconds, first and longest, before a worker steps back or asks again
STEPS_BACK = End(EndReason.EPOCH_OVER, "another worker is the owner of the partition")
SILENT_AFTER = 11.0  # seconds; two records of a worker are overdue (contract.status.STATUS_INTERVAL)
READ_INTERVAL = 2.0  # seconds between attempts to read the status stream
WITH_PRIORITIES = ("1.0.", "1.1.")  # releases whose consumers have a priority


@cache
def weight(worker: str, partition: int) -> int:
    """Rendezvous (highest-random-weight) hashing: adding or removing a worker moves only its own
    partitions."""
    key = f"{worker} {partition}".encode(errors="replace")
    return int.from_bytes(blake2b(key, digest_size=8, person=b"ott-rendezvous").digest())


class Members:
    """The workers of a prefix: `worker` itself, and those with a recent status record."""

    def __init__(self, worker: str, stream: str) -> None:
        self.worker = worker
        self._stream = stream
        # When each was first and last seen (monotonic seconds), and its version.
        self._others: dict[str, tuple[float, float, str]] = {}

    def owner(self, partition: int) -> tuple[str, float]:
        """The owner of a partition: the worker that should consume it, and when it was first seen (monotonic
        seconds)."""
        silent, others = time.monotonic() - SILENT_AFTER, self._others
        others = self._others = {name: each for name, each in others.items() if each[1] >= silent}
        best = max((self.worker, *others), key=lambda worker: (weight(worker, partition), worker))
        return best, others[best][0] if best in others else 0.0

    @property
    def have_priorities(self) -> bool:
        """Whether another worker may become and cease to be a partition's active consumer between two
        deliveries, as a consumer with a priority can on RabbitMQ 4."""
        return any(version.startswith(WITH_PRIORITIES) for _, _, version in self._others.values())

    def observe(self, document: object) -> None:
        """Read a record of the status stream."""
        try:
            record = WorkerStatus.model_validate(document)
        except ValidationError:
            return
        if record.state in ("draining", "stopped"):
            self._others.pop(record.worker, None)
        elif record.worker != self.worker:
            now = time.monotonic()
            since, *_ = self._others.get(record.worker, (now,))
            self._others[record.worker] = (since, now, record.version)

    async def follow(self, connection: Connection) -> None:
        """Read the status stream, until cancelled. Without the stream, no other worker is known."""
        reader = StreamReader(connection, self._stream)
        while True:
            with contextlib.suppress(BrokerUnreachable, TopologyError):
                async with contextlib.aclosing(reader.follow("last")) as entries:
                    async for entry in entries:
                        for document in entry.records:
                            self.observe(document)
            await asyncio.sleep(READ_INTERVAL)


class _Place(Intake):
    """This worker's consumer of one partition, active or standing by."""

    def __init__(
        self, number: int, tools: Tools, log: PartitionLog, members: Members, leaving: asyncio.Event
    ) -> None:
        def journeys(subscription: Subscription) -> PartitionJourneys:
            self._subscribed_at = time.monotonic()
            return PartitionJourneys(subscription, tools, number, log, lambda: members.have_priorities)

        super().__init__(tools, Topology(tools.settings.prefix).partition(number), journeys, leaving)
        self._is_kept = 1 < tools.settings.partitions >= number  # else it is only drained
        # Monotonic seconds:
        self._subscribed_at = self._asked_at = self._since = 0.0
        self._owner = ""  # since `_since`
        self._patience = PATIENCE[0]

    @property
    def is_active(self) -> bool:
        """Whether this worker is the active consumer, as far as it knows."""
        return self.subscription is not None and self._current is not None and self._current.is_active

    async def consume(self, connection: Connection) -> None:
        """Consume it until the connection is lost, the worker leaves, or the partition is pruned."""
        while connection.is_open and not self.stopping.is_set():
            try:
                if not self._is_kept and not await exists(connection, self.queue):
                    return
                await self.consume_on(connection)
            except Exception as error:
                if connection.is_open:
                    why = str(error) if isinstance(error, WorkerError) else type(error).__name__
                    self.tools.events.topology_wrong(f"{self.queue}: {why}")
            await pause(RETRY_INTERVAL, self.stopping)

    def spread(self, owner: str, known_since: float, *, is_own: bool) -> bool:
        """Subscribe again, behind the owner: once if this worker may be ahead of it, and again while it is
        still the active consumer. Returns whether this worker is the owner, is not active and should ask
        which worker is."""
        now = time.monotonic()
        if owner != self._owner:
            self._owner, self._since, self._patience = owner, now, PATIENCE[0]
        behind_at = max(self._since, known_since + SUBSCRIBED_WITHIN)
        if not is_own and self._subscribed_at < behind_at:
            is_due = now >= behind_at
        else:
            acted_at = max(self._subscribed_at, self._since, self._asked_at)
            is_due = self.is_active is not is_own and now - acted_at >= self._patience
            if is_due:
                self._asked_at, self._patience = now, min(self._patience * 2, PATIENCE[1])
        if is_due and not is_own and self._current is not None:
            self._current.end = self._current.end or STEPS_BACK
        return is_due and is_own


class Partitions:
    """The partitions of one worker."""

    def __init__(self, worker: str, tools: Tools, stopping: asyncio.Event) -> None:
        self._tools = tools
        self._names = Topology(tools.settings.prefix)
        self._log = PartitionLog(worker, tools)
        self._members = Members(worker, self._names.status)
        self._stopping = stopping
        self.places: dict[int, _Place] = {}  # by number
        self.in_use = tools.settings.partitions > 1

    @property
    def taken(self) -> list[int]:
        """The partitions whose active consumer this worker is, as far as it knows."""
        return sorted(number for number, place in self.places.items() if place.is_active)

    @property
    def share(self) -> float:
        """The share of all partitions that this worker consumes: its share of a rate for all workers."""
        return max(1, len(self.taken)) / max(1, len(self.places)) if self.in_use else 1.0

    def journeys(self, subscription: Subscription) -> Journeys:
        """The journeys of one subscription to the requests queue."""
        if self.in_use:
            return Router(subscription, self._tools, self._log)
        return Undivided(subscription, self._tools)

    @contextlib.asynccontextmanager
    async def consumed(self, connection: Connection) -> AsyncIterator[None]:
        """Consume all partitions within this context. Even with OTT_PARTITIONS=1 there may be some, of an
        earlier setting or of other workers. Raises BrokerUnreachable."""
        most = self._tools.settings.partitions
        self.in_use = most > 1 or await exists(connection, self._names.partition(1))
        if not self.in_use:
            yield
            return
        # After a deletion of the log, it lacks the partitions used before.
        most += len(await partitions_from(connection, self._names, most + 1))
        self._log.state.most_partitions = max(self._log.state.most_partitions, most)
        leaving = asyncio.Event()
        running = asyncio.create_task(self._run(connection, leaving), name="partitions")
        try:
            yield
        finally:
            leaving.set()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, connection: Connection, leaving: asyncio.Event) -> None:
        """Consume the partitions that were found and all others in the log, if they exist."""
        places: dict[int, _Place] = {}
        self.places = places
        known: object = None

        async def consume(number: int) -> None:
            place = places[number] = _Place(number, self._tools, self._log, self._members, leaving)
            await place.consume(connection)
            del places[number]

        try:
            async with asyncio.TaskGroup() as group:
                following = (
                    group.create_task(self._log.follow(), name="partition log"),
                    group.create_task(self._members.follow(connection), name="members"),
                )
                async with asyncio.TaskGroup() as consuming:
                    while not leaving.is_set():
                        # One that was pruned may be used again from the next epoch on.
                        if known != (known := (self._log.state.epoch, self._log.partitions)):
                            for number in sorted(self._log.partitions - places.keys()):
                                consuming.create_task(consume(number), name=f"partition {number}")
                        self._spread(consuming)
                        await pause(SPREAD_INTERVAL, leaving)
                        if self._stopping.is_set():
                            leaving.set()
                for task in following:
                    task.cancel()
        except Exception as error:
            # After a defect nothing consumes the partitions: begin again on a new connection.
            self._tools.events.topology_wrong(f"Partitions: {type(error).__name__}")
            await connection.close()

    def _spread(self, group: asyncio.TaskGroup) -> None:
        for number, place in self.places.items():
            if place.subscription is None:
                continue
            owner, known_since = self._members.owner(number)
            if place.spread(owner, known_since, is_own=owner == self._members.worker):
                group.create_task(self._ask(number), name=f"ask for partition {number}")

    async def _ask(self, number: int) -> None:
        with contextlib.suppress(WorkerError):
            await self._tools.publisher.send(barrier(self._names.partition(number), 0))


class Undivided(Journeys):
    """The journeys of a worker without partitions."""

    async def take_over(self) -> None:
        """If another worker has declared partitions meanwhile, reconnect to use them."""
        if await exists(self.subscription.connection, Topology(self._tools.settings.prefix).partition(1)):
            self.end = End(EndReason.EPOCH_OVER, "there are partitions now")
            await self.subscription.connection.close()
        else:
            await super().take_over()
