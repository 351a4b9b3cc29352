"""One partition and its active consumer (contract §10). tests/models/partition_protocol.py describes the
protocol and checks it.

Requests are processed as without partitions (journey.py), in the order of the partition. In addition,
barriers are settled and recorded. Requests that a router published behind its successor's barrier are
ignored, because the successor receives them too."""

import asyncio
from collections.abc import Callable

from worker.amqp.consumer import Delivery, End, Subscription
from worker.broker.request_message import operator_headers
from worker.broker.topology import Topology
from worker.partitions.log import Barrier, PartitionLog
from worker.partitions.message import arrival_of, as_it_came, epoch_of, is_barrier
from worker.pipeline.journey import Journeys, Tools

POLL_INTERVAL = 0.01  # seconds, while a barrier waits for what is before it


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
        """`is_shared`: whether another worker may have consumed the partition between two deliveries."""
        super().__init__(subscription, tools)
        self._partition = partition
        self._log = log
        self._is_shared = is_shared
        self._epoch = 0  # of the newest barrier
        self._routed_in = 0  # the epoch of the newest request

    def report_end(self, why: End, unsettled: int) -> None:
        """Report that this worker has left the partition, if it was active."""
        if self.is_active:
            self._events.partition_left(self._partition, str(why))

    def _report_active(self) -> None:
        self._events.partition_taken(self._partition)

    def accept(self, delivery: Delivery) -> None:
        """Process a delivery. If the partition is shared, take over again before each delivery that arrives
        while nothing is unsettled."""
        if self._held is None and self.subscription.oldest is delivery and self._is_shared():
            self._begin()
        super().accept(delivery)

    async def take_over(self) -> None:
        """Read the records of other workers."""
        await self._log.catch_up()
        self._epoch = max(self._epoch, self._log.barrier(self._partition).epoch)
        self._tools.replay_guard.subscription_began()

    def _admit(self, delivery: Delivery) -> None:
        if delivery.routing_key != Topology(self._tools.settings.prefix).partition(self._partition):
            # A publisher's CC or BCC header routed it here, not the router: ignore its headers.
            forged = operator_headers(delivery.properties)
            delivery.properties = delivery.properties.changed(without=forged)
        properties = delivery.properties
        epoch = epoch_of(properties)
        if epoch is None:
            epoch = self._epoch
        if is_barrier(properties):
            self._epoch = max(self._epoch, epoch)
            self._run("barrier", self._settle_barrier(delivery, epoch))
        elif epoch < self._epoch:
            self._events.late_request_ignored(self._partition)
            self.subscription.ack(delivery)
        else:
            if epoch > self._routed_in:
                # A resource may have come from another partition, with what another worker settled there.
                self._routed_in = epoch
                self._tools.replay_guard.subscription_began()
            arrived_at = arrival_of(properties)
            if arrived_at is None:
                arrived_at = self._tools.clock.stamp()
            self._tools.clock.raise_floor(arrived_at)
            came = as_it_came(delivery, self._tools.settings.prefix)
            self._enqueue(self._tools.parser.parse(came, arrived_at))

    async def _settle_barrier(self, delivery: Delivery, epoch: int) -> None:
        while self.subscription.oldest is not delivery:  # noqa: ASYNC110 - the subscription has no event for it
            await asyncio.sleep(POLL_INTERVAL)
        # A barrier older than the newest one is recorded too, so that its router learns that it was replaced.
        newest = max(epoch, self._log.barrier(self._partition).epoch)
        await self._log.settled(self._partition, Barrier(newest, self._tools.clock.latest))
        self.subscription.ack(delivery)
