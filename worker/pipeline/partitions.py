"""All partitions, as one worker consumes them (contract §10): each as a single active consumer, all on the
worker's consuming connection. RabbitMQ decides which worker has which partition."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from worker.amqp.connection import Connection
from worker.amqp.consumer import Subscription
from worker.broker import topology
from worker.broker.control_stream import StandingOrders
from worker.broker.partition_log import PartitionLog
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, TopologyError
from worker.events import EventListener
from worker.pipeline import rendezvous
from worker.pipeline.intake import QueueIntake
from worker.pipeline.journey import Journeys
from worker.settings import Settings

RETRY_INTERVAL = 1.0  # seconds between attempts to consume a partition
LONGEST_DELAY = 1.0  # seconds, before RabbitMQ 4.0
PRIORITIES_SINCE = 4  # the major version of RabbitMQ

JourneysFor = Callable[[int, Subscription, bool], Journeys]


class Partitions:
    """The partitions of one worker. Without any, it does nothing."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        log: PartitionLog,
        journeys: JourneysFor,
        orders: StandingOrders,
        stopping: asyncio.Event,
        events: EventListener,
    ) -> None:
        self._settings = settings
        self._names = Topology(settings.prefix)
        self._log = log
        self._journeys = journeys
        self._orders = orders
        self._stopping = stopping
        self._events = events
        self._worker = worker
        self._intakes: dict[int, QueueIntake] = {}
        self.in_use = settings.partitions > 1

    @property
    def taken(self) -> list[int]:
        """The partitions whose active consumer this worker is, as far as it knows."""
        standing = (number for number, intake in self._intakes.items() if intake.subscription is not None)
        return sorted(number for number in standing if self._log.is_taken(number))

    @property
    def subscriptions(self) -> list[Subscription]:
        """The subscriptions that stand now."""
        return [s for intake in self._intakes.values() if (s := intake.subscription) is not None]

    @property
    def lanes(self) -> int:
        """Resources with a request under way, in the subscriptions that stand."""
        return sum(intake.lanes for intake in self._intakes.values() if intake.subscription is not None)

    async def exist(self, connection: Connection) -> bool:
        """Whether there are any. With OTT_PARTITIONS=1 there may be some from before, or from workers with a
        new number. Raises BrokerUnreachable."""
        return await topology.exists(connection, self._names.partition(1))

    @contextlib.asynccontextmanager
    async def consumed(self, connection: Connection) -> AsyncIterator[None]:
        """Consume all partitions within this context. Raises BrokerUnreachable."""
        self.in_use = self._settings.partitions > 1 or await self.exist(connection)
        if not self.in_use:
            yield
            return
        leaving = asyncio.Event()
        tasks = [
            asyncio.create_task(self._stop_with_worker(leaving), name="stop partitions"),
            asyncio.create_task(self._consume_all(connection, leaving), name="partitions"),
        ]
        async with self._log.followed():
            try:
                yield
            finally:
                leaving.set()
                tasks[0].cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_with_worker(self, leaving: asyncio.Event) -> None:
        await self._stopping.wait()
        leaving.set()

    async def _consume_all(self, connection: Connection, leaving: asyncio.Event) -> None:
        """The partitions up to this worker's own number, and every other one that has been used."""
        async with asyncio.TaskGroup() as group:
            started: set[int] = set()
            while not leaving.is_set():
                wanted = set(range(1, self._settings.partitions + 1)) | self._log.partitions
                for number in sorted(wanted - started):
                    started.add(number)
                    group.create_task(self._consume(connection, number, leaving), name=f"partition {number}")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_INTERVAL):
                        await leaving.wait()

    async def _consume(self, connection: Connection, number: int, leaving: asyncio.Event) -> None:
        shared = int(connection.server_version.partition(".")[0] or 0) >= PRIORITIES_SINCE
        if not shared:
            await _until(leaving, rendezvous.delay(self._worker, number, LONGEST_DELAY))
        events = _PartitionEvents(number, self._events)
        intake = self._intakes[number] = QueueIntake(
            self._settings,
            self._names.partition(number),
            lambda subscription: self._journeys(number, subscription, shared),
            _at_once,
            self._orders,
            leaving,
            events,
            rendezvous.weight(self._worker, number) if shared else None,
        )
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
            await _until(leaving, RETRY_INTERVAL)

    async def _is_there(self, connection: Connection, number: int) -> bool:
        """Whether to go on consuming it. One that was deleted is declared anew, unless it is beyond this
        worker's number: then it was pruned."""
        if not connection.is_open:
            return False
        if await topology.exists(connection, self._names.partition(number)):
            return True
        if not 1 < self._settings.partitions >= number:
            return False
        await topology.ensure(connection, self._settings)
        return True


async def _at_once(_: Journeys) -> None:
    """The journeys of a partition take over by themselves."""


async def _until(leaving: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await leaving.wait()


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
