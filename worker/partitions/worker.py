"""All partitions, as one worker consumes them (contract §10): each as a single active consumer, all on the
worker's consuming connection.

RabbitMQ decides which worker has which partition: the first that has subscribed. So the workers spread over
the partitions by their place behind each other. One that learns of a better owner settles what it holds and
subscribes anew, behind it. An owner that gets nothing sends a barrier of no epoch through its partition. It
shows who has it: the owner itself, or a worker that steps back then.

Who is to have what, each worker computes by itself from PREFIX.status. A wrong belief does no harm, because
RabbitMQ gives a partition to one consumer at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import End, EndReason, Subscription
from worker.amqp.lone_channel import LoneChannel
from worker.amqp.publisher import Publisher
from worker.amqp.queue import exists
from worker.amqp.reconnect import pause
from worker.amqp.stream_reader import StreamReader
from worker.broker import topology
from worker.broker.status import StandingOrders
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.partitions.log import PartitionLog
from worker.partitions.message import barrier
from worker.partitions.partition import PartitionJourneys
from worker.partitions.router import Router
from worker.pipeline.intake import Intake
from worker.pipeline.journey import Journeys, Tools

RETRY_INTERVAL = 1.0  # seconds between attempts to consume a partition
SPREAD_INTERVAL = 0.5  # seconds between looks at who is to have what
SUBSCRIBED_WITHIN = 2.0  # seconds in which a worker that is new has subscribed to all partitions
PATIENCE = (2.0, 60.0)  # seconds, first and longest: before a worker steps back, or asks, once more
STEPS_BACK = End(EndReason.EPOCH_OVER, "another worker is to have the partition")
SILENT_AFTER = 11.0  # seconds; two of a worker's records did not come (contract.status.STATUS_INTERVAL)
READ_INTERVAL = 2.0  # seconds between attempts to read on
GONE = frozenset({"draining", "stopped"})
WITH_PRIORITIES = ("1.0.", "1.1.")  # releases whose consumers have a priority


@cache
def weight(worker: str, partition: int) -> int:
    """Rendezvous (highest-random-weight) hashing: adding or removing a worker moves only its own
    partitions."""
    key = f"{worker} {partition}".encode(errors="replace")
    return int.from_bytes(blake2b(key, digest_size=8, person=b"ott-rendezvous").digest())


class _Heard(BaseModel):
    """What counts here of a worker's record."""

    model_config = ConfigDict(hide_input_in_errors=True)

    worker: str
    version: str = ""
    state: str = ""


class Members:
    """The workers of a prefix: `worker` itself, and those that were heard of lately."""

    def __init__(self, worker: str, stream: str) -> None:
        self.worker = worker
        self._stream = stream
        self._joined: dict[str, float] = {}
        self._heard: dict[str, tuple[float, str]] = {}  # when, and its version

    def owner(self, partition: int) -> tuple[str, float]:
        """The worker that is to have a partition, and since when it is known (monotonic seconds)."""
        silent = time.monotonic() - SILENT_AFTER
        for name in [name for name, (at, _) in self._heard.items() if at < silent]:
            self._forget(name)
        best = max((self.worker, *self._heard), key=lambda worker: (weight(worker, partition), worker))
        return best, self._joined.get(best, 0.0)

    @property
    def have_priorities(self) -> bool:
        """Whether one of the others may take a partition between two deliveries, and give it back: RabbitMQ
        4 lets a consumer with a priority do so."""
        return any(version.startswith(WITH_PRIORITIES) for _, version in self._heard.values())

    def hear(self, document: object) -> None:
        """Take in a record of the status stream."""
        try:
            record = _Heard.model_validate(document)
        except ValidationError:
            return
        if record.state in GONE:
            self._forget(record.worker)
        elif record.worker != self.worker:
            now = time.monotonic()
            self._joined.setdefault(record.worker, now)
            self._heard[record.worker] = (now, record.version)

    async def follow(self, connection: Connection) -> None:
        """Read the records as they come, until cancelled. Without the stream, no other worker is known."""
        reader = StreamReader(connection, self._stream)
        while True:
            with contextlib.suppress(BrokerUnreachable, TopologyError):
                async with contextlib.aclosing(reader.follow("last")) as entries:
                    async for entry in entries:
                        for document in entry.records:
                            self.hear(document)
            await asyncio.sleep(READ_INTERVAL)

    def _forget(self, worker: str) -> None:
        self._heard.pop(worker, None)
        self._joined.pop(worker, None)


@dataclass
class _Place:
    """This worker's place among the consumers of a partition."""

    intake: Intake
    journeys: PartitionJourneys | None = None
    subscribed_at: float = 0.0  # monotonic seconds, as all here
    owner: str = ""
    since: float = 0.0
    patience: float = PATIENCE[0]
    asked_at: float = 0.0

    @property
    def is_active(self) -> bool:
        return self.intake.subscription is not None and self.journeys is not None and self.journeys.is_active

    def learn(self, owner: str) -> None:
        """Take note of who is to have it."""
        if owner != self.owner:
            self.owner, self.since, self.patience = owner, time.monotonic(), PATIENCE[0]

    def steps_back(self, known_since: float) -> bool:
        """Whether to subscribe anew, behind the owner: once where this worker may be ahead of it, and again
        each time that it is the active consumer all the same."""
        now, behind_at = time.monotonic(), max(self.since, known_since + SUBSCRIBED_WITHIN)
        if self.subscribed_at < behind_at:
            return now >= behind_at
        if not self.is_active or now - self.subscribed_at < self.patience:
            return False
        self.patience = min(self.patience * 2, PATIENCE[1])
        return True

    def asks(self) -> bool:
        """Whether the owner, which gets nothing, is to find out who has it."""
        now = time.monotonic()
        if self.is_active or now - max(self.subscribed_at, self.since, self.asked_at) < self.patience:
            return False
        self.asked_at, self.patience = now, min(self.patience * 2, PATIENCE[1])
        return True


class Partitions:
    """The partitions of one worker. Without any, it does nothing."""

    def __init__(
        self,
        worker: str,
        tools: Tools,
        publisher: Publisher,
        orders: StandingOrders,
        stopping: asyncio.Event,
    ) -> None:
        settings = self._settings = tools.settings
        self._names = Topology(settings.prefix)
        self._tools = tools
        self._log = PartitionLog(settings, worker, publisher, tools.events)
        self._members = Members(worker, self._names.status)
        self._publisher = publisher
        self._orders = orders
        self._stopping = stopping
        self._events = tools.events
        self._places: dict[int, _Place] = {}
        self.in_use = settings.partitions > 1

    @property
    def taken(self) -> list[int]:
        """The partitions whose active consumer this worker is, as far as it knows."""
        return sorted(number for number, place in self._places.items() if place.is_active)

    @property
    def share(self) -> float:
        """The share of all partitions that this worker consumes: of a rate that holds for all workers
        together, so much is its own."""
        if not self.in_use:
            return 1.0
        partitions = set(range(1, self._settings.partitions + 1)) | self._log.partitions
        return max(1, len(self.taken)) / len(partitions)

    @property
    def intakes(self) -> list[Intake]:
        """Those of the partitions that this worker consumes, or is behind in."""
        return [place.intake for place in self._places.values()]

    def router(self, subscription: Subscription) -> Router:
        """The router, for one subscription to the requests queue."""
        tools = replace(self._tools, tracing=None)  # the partition's worker traces the request
        source = partial(connect, self._settings, "router")
        open_channel = partial(LoneChannel.open, "router", self._events, source)
        return Router(subscription, tools, self._settings.partitions, self._log, open_channel)

    async def exist(self, connection: Connection) -> bool:
        """Whether there are any. With OTT_PARTITIONS=1 there may be some from before, or from workers with a
        new number. Raises BrokerUnreachable."""
        return await exists(connection, self._names.partition(1))

    @contextlib.asynccontextmanager
    async def consumed(self, connection: Connection) -> AsyncIterator[None]:
        """Consume all partitions within this context. Raises BrokerUnreachable."""
        self.in_use = self._settings.partitions > 1 or await self.exist(connection)
        if not self.in_use:
            yield
            return
        leaving = asyncio.Event()
        running = asyncio.create_task(self._run(connection, leaving), name="partitions")
        try:
            yield
        finally:
            leaving.set()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(self, connection: Connection, leaving: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._leave_with_worker(leaving), name="stop partitions"),
                    group.create_task(self._log.follow(), name="partition log"),
                    group.create_task(self._members.follow(connection), name="members"),
                ]
                await self._consume_all(connection, leaving)
                for task in beside:
                    task.cancel()
        except Exception as error:
            # A defect. Nothing would consume the partitions any more: begin again on a new connection.
            self._events.topology_wrong(f"Partitions: {type(error).__name__}")
            await connection.close()

    async def _leave_with_worker(self, leaving: asyncio.Event) -> None:
        await self._stopping.wait()
        leaving.set()

    async def _consume_all(self, connection: Connection, leaving: asyncio.Event) -> None:
        """The partitions up to this worker's own number, and every other one that has been used."""
        self._places = {}
        async with asyncio.TaskGroup() as group:
            while not leaving.is_set():
                wanted = set(range(1, self._settings.partitions + 1)) | self._log.partitions
                for number in sorted(wanted - set(self._places)):
                    place = self._places[number] = self._place(number, leaving)
                    consume = self._consume(connection, number, place.intake, leaving)
                    group.create_task(consume, name=f"partition {number}")
                self._spread(group)
                await pause(SPREAD_INTERVAL, leaving)

    def _place(self, number: int, leaving: asyncio.Event) -> _Place:
        def journeys(subscription: Subscription) -> Journeys:
            place.journeys = PartitionJourneys(
                subscription, self._tools, number, self._log, lambda: self._members.have_priorities
            )
            place.subscribed_at = time.monotonic()
            return place.journeys

        place = _Place(
            Intake(
                self._settings,
                self._names.partition(number),
                journeys,
                _at_once,
                self._orders,
                leaving,
                _PartitionEvents(number, self._events),
            )
        )
        return place

    def _spread(self, group: asyncio.TaskGroup) -> None:
        for number, place in self._places.items():
            if place.intake.subscription is None or place.journeys is None:
                continue
            owner, known_since = self._members.owner(number)
            place.learn(owner)
            if owner == self._members.worker:
                if place.asks():
                    group.create_task(self._ask(number), name=f"ask for partition {number}")
            elif place.steps_back(known_since):
                place.journeys.end = place.journeys.end or STEPS_BACK

    async def _ask(self, number: int) -> None:
        with contextlib.suppress(WorkerError):
            await self._publisher.send(barrier(self._names.partition(number), 0))

    async def _consume(
        self, connection: Connection, number: int, intake: Intake, leaving: asyncio.Event
    ) -> None:
        while connection.is_open and not leaving.is_set():
            try:
                await intake.consume_on(connection)
                if leaving.is_set() or not await self._is_there(connection, number):
                    return
            except (BrokerUnreachable, TopologyError) as error:
                if connection.is_open:
                    self._events.topology_wrong(str(error))
            except Exception as error:
                self._events.topology_wrong(f"Partition {number}: {type(error).__name__}")
            await pause(RETRY_INTERVAL, leaving)

    async def _is_there(self, connection: Connection, number: int) -> bool:
        """Whether to go on consuming it. One that was deleted is declared anew, unless it is beyond this
        worker's number: then it was pruned."""
        if not connection.is_open:
            return False
        if await exists(connection, self._names.partition(number)):
            return True
        if not 1 < self._settings.partitions >= number:
            return False
        await topology.ensure(connection, self._settings)
        return True


async def _at_once(_: Journeys) -> None:
    """The journeys of a partition take over by themselves."""


class _PartitionEvents(EventListener):
    """Turns the events of one partition's intake into events of a partition instead of the worker."""

    def __init__(self, number: int, events: EventListener) -> None:
        self._number = number
        self._events = events
        self._is_taken = False

    def active(self) -> None:
        self._is_taken = True
        self._events.partition_taken(self._number)

    def subscription_ended(self, why: str) -> None:
        self._left(why)

    def returned(self, count: int, why: str) -> None:
        self._left(why)

    def acknowledgements_unheard(self) -> None:
        self._events.acknowledgements_unheard()

    def _left(self, why: str) -> None:
        if self._is_taken:
            self._is_taken = False
            self._events.partition_left(self._number, why)
