"""One partition, as its active consumer works on it (contract §10). tests/models/partition_protocol.py
describes the protocol and checks it.

Requests are processed as those of an undivided queue are (journey.py), in the order of the partition. In
addition, barriers are settled and recorded. Requests that a router published behind the barrier of its
successor are ignored, because the successor gets them too.
"""

import asyncio
from collections.abc import Callable, Coroutine

from worker.amqp.consumer import Delivery, Subscription
from worker.broker.request_message import operator_headers
from worker.broker.topology import Topology
from worker.partitions.log import Barrier, PartitionLog
from worker.partitions.message import arrival_of, as_it_came, epoch_of, is_barrier
from worker.pipeline.arrival_clock import ArrivalClock
from worker.pipeline.journey import Journeys, Tools

POLL_INTERVAL = 0.01  # seconds, while a barrier waits for what came before it


class PartitionJourneys(Journeys):
    """The journeys of one subscription to one partition."""

    def __init__(
        self,
        subscription: Subscription,
        tools: Tools,
        partition: int,
        log: PartitionLog,
        is_shared: Callable[[], bool],
    ) -> None:
        """`is_shared`: whether another worker may have had the partition between two deliveries."""
        super().__init__(subscription, tools)
        self._partition = partition
        self._log = log
        self._is_shared = is_shared
        self._epoch: int | None = None  # of the newest barrier
        self._held: list[Delivery] | None = None  # until the log is read
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_active = False  # whether anything was delivered

    def accept(self, delivery: Delivery, arrival: ArrivalClock | None = None) -> None:
        """Take in a delivery. Before the first one, read what other workers recorded; and where the partition
        is shared, before each that comes while nothing is unsettled."""
        self.is_active = True
        if self._held is not None:
            self._held.append(delivery)
        elif self._epoch is None or (self._subscription.oldest is delivery and self._is_shared()):
            self._held = [delivery]
            self._run(self._look())
        else:
            self._admit(delivery)

    async def cancel(self) -> None:
        """End all of them at once."""
        for task in self._tasks:
            task.cancel()
        await super().cancel()

    async def _look(self) -> None:
        await self._log.catch_up()
        self._epoch = max(self._epoch or 0, self._log.barrier(self._partition).epoch)
        self._tools.replay_guard.subscription_began()
        held, self._held = self._held or [], None
        for delivery in held:
            self._admit(delivery)

    def _admit(self, delivery: Delivery) -> None:
        if delivery.routing_key != Topology(self._tools.settings.prefix).partition(self._partition):
            # A publisher's CC or BCC header put it here, not the router: its headers are no marks.
            forged = operator_headers(delivery.properties)
            delivery.properties = delivery.properties.changed(without=forged)
        properties, newest = delivery.properties, self._epoch or 0
        epoch = epoch_of(properties)
        epoch = newest if epoch is None else epoch
        if is_barrier(properties):
            self._epoch = max(newest, epoch)
            self._run(self._settle_barrier(delivery, epoch))
        elif epoch < newest:
            self._events.late_request_ignored(self._partition)
            self._subscription.ack(delivery)
        else:
            arrived_at = arrival_of(properties)
            moment = self._tools.clock.stamp() if arrived_at is None else arrived_at
            self._tools.clock.raise_floor(moment)
            super().accept(as_it_came(delivery, self._tools.settings.prefix), ArrivalClock(lambda: moment))

    async def _settle_barrier(self, delivery: Delivery, epoch: int) -> None:
        while self._subscription.oldest is not delivery:  # noqa: ASYNC110 - it is known to nobody else
            await asyncio.sleep(POLL_INTERVAL)
        # A barrier older than the newest one is recorded too, so that its router learns that it has lost its
        # role.
        newest = max(epoch, self._log.barrier(self._partition).epoch)
        await self._log.settled(self._partition, Barrier(newest, self._tools.clock.latest))
        self._subscription.ack(delivery)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"partition {self._partition}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
