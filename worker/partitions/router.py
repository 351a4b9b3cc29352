"""The router: the active consumer of PREFIX.requests, which publishes each request to the partition of its
resource (contract §10). tests/models/partition_protocol.py describes the protocol and checks it.

The waiting requests of a resource are published together, in their order. Each is acknowledged when its
partition has confirmed it and all before it. Requests that validation rejects are settled here."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b

from worker.amqp.confirm_channel import LoneChannel
from worker.amqp.connection import connect
from worker.amqp.consumer import End, EndReason, Subscription
from worker.amqp.queue import look
from worker.broker.topology import Topology
from worker.contract.registration import Rejection
from worker.contract.settlement import Resource
from worker.errors import BrokerUnreachable, QueueFull, Unroutable, WorkerError
from worker.partitions.log import PartitionLog
from worker.partitions.message import barrier, routed
from worker.pipeline.journey import Journeys, Tools
from worker.pipeline.request import Request

BARRIER_WAIT = 10.0  # seconds until a barrier is published again, twice as long each time
FULL_INTERVAL = 0.05  # seconds between checks of a full partition


def partition_of(resource: Resource, partitions: int) -> int:
    """The partition of a resource, from 1 to `partitions`."""
    digest = blake2b(digest_size=8, person=b"ott-partition")
    for part in (resource.account or "", resource.platform, resource.id):
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(4) + encoded)
    return 1 + int.from_bytes(digest.digest()) % partitions


class Router(Journeys):
    """The router of one subscription. If RabbitMQ closes its channel because of a message, it begins another
    epoch; if it loses the channel otherwise, the subscription ends."""

    def __init__(self, subscription: Subscription, tools: Tools, log: PartitionLog) -> None:
        super().__init__(subscription, replace(tools, tracing=None))  # the partition's worker traces it
        settings = tools.settings
        self._epoch = 0
        self._partitions = settings.partitions
        self._log = log
        self._source = partial(connect, settings, "router")
        self._channel: LoneChannel | None = None
        self._channels: list[LoneChannel] = []
        self._routes = asyncio.Event()  # set when all earlier epochs have ended
        self._names = Topology(settings.prefix)
        self._capacity = defaultdict[int, PartitionCapacity](partial(PartitionCapacity, settings.prefetch))

    async def take_over(self) -> None:
        """Begin an epoch, and return when every partition has settled everything from earlier routers. If
        that fails, the epoch ends."""
        await self._begin_epoch(is_first=True)
        await super().take_over()

    async def cancel(self) -> None:
        """Stop at once. Requests that are published but not acknowledged are redelivered."""
        await super().cancel()
        for channel in self._channels:
            await channel.close()

    async def _begin_epoch(self, *, is_first: bool) -> None:
        """Claim an epoch, with its own channel, and publish its barrier to the partitions."""
        started = time.monotonic()
        channel = await LoneChannel.open("router", self._events, self._source)
        self._channels.append(channel)
        epoch = await self._log.claim(self._partitions)
        # A worker that was frozen meanwhile must not route in an epoch above its successor's.
        await self.subscription.renew_lease()
        partitions = await self._send_barriers(channel, epoch, self._log.partitions)
        self._epoch, self._channel = epoch, channel
        channel.lost.add_done_callback(lambda _: self._lost(channel))
        if is_first:
            await self._until_settled(channel, epoch, partitions)
        self._routes.set()
        self._events.epoch_began(epoch, self._partitions, time.monotonic() - started)

    async def _send_barriers(self, channel: LoneChannel, epoch: int, partitions: Collection[int]) -> set[int]:
        """Publish the epoch's barrier to these partitions, and return those that exist."""
        barriers = [barrier(self._names.partition(partition), epoch) for partition in partitions]
        outcomes = await asyncio.gather(*map(channel.send, barriers), return_exceptions=True)
        found = set(partitions)
        for partition, outcome in zip(partitions, outcomes, strict=True):
            if isinstance(outcome, Unroutable) and partition > self._partitions:
                found.discard(partition)  # it was pruned
            elif outcome is not None:
                if isinstance(outcome, Unroutable):  # it was deleted: the next connection declares it again
                    await self.subscription.connection.close()
                raise outcome
        return found

    async def _until_settled(self, channel: LoneChannel, epoch: int, partitions: set[int]) -> None:
        log, wait = self._log, BARRIER_WAIT

        def behind() -> set[int]:
            return {partition for partition in partitions if log.barrier(partition).epoch < epoch}

        while behind():
            try:
                async with asyncio.timeout(wait):
                    await log.until(lambda: not behind())
            except TimeoutError:  # its queue may have been deleted, and the barrier with it
                wait *= 2
                partitions -= behind() - await self._send_barriers(channel, epoch, behind())
        for partition in partitions:
            self._tools.clock.raise_floor(log.barrier(partition).newest_arrival)
        if any(log.barrier(partition).epoch > epoch for partition in partitions):
            raise WorkerError("another worker is the router")

    def _lost(self, channel: LoneChannel) -> None:
        if channel is not self._channel:
            return  # it is known
        self._channel = None
        if self._routes.is_set() and channel.was_closed_for_cause:
            self._routes.clear()
            self._run("epoch", self._renew(channel))
        else:
            self._end_epoch(channel.lost.result())

    async def _renew(self, lost: LoneChannel) -> None:
        """Begin another epoch. All resources stay in their partitions, so the requests of the last epoch need
        not be settled first. What may still arrive from its channel is behind the barrier, and ignored."""
        await self._begin_epoch(is_first=False)
        if not await lost.poisonous():
            self._end_epoch(lost.lost.result())
        await lost.close()
        self._channels.remove(lost)

    async def _journey(self, request: Request) -> None:
        if isinstance(request.parsed, Rejection) or request.resource is None:
            await super()._journey(request)
            return
        run = [request, *self._lanes.behind(request.resource)]
        await self._route(partition_of(request.resource, self._partitions), run)
        self._lanes.drop(request.resource, run[1:])

    def _pick(self, waiting: Sequence[Request]) -> Request:
        """Always the oldest: the partition's worker decides which requests of a resource need no call."""
        return waiting[0]

    async def _route(self, partition: int, run: Sequence[Request]) -> None:
        """Publish requests of one resource, and acknowledge them. If one is rejected, it and all that follow
        it are published again: some of those may be in the partition already, and must follow it again."""
        queue, entry = self._names.partition(partition), self._names.entry
        # A replay's `received_at` is not the time of its arrival.
        arrived_at = {each: self._tools.clock.stamp() if each.is_replay else each.received_at for each in run}
        reduced: set[Request] = set()
        first, at = run[0], 0
        while at < len(run):
            first.phase = "waiting"
            await self._routes.wait()
            if self._channel is None:
                raise BrokerUnreachable("the epoch is over")
            channel, epoch = self._channel, self._epoch
            try:
                async with self._capacity[partition].slots(len(run) - at, channel, queue) as count:
                    await self.subscription.ensure_lease()
                    first.phase = "settling"
                    messages = {
                        each: routed(
                            each.delivery, queue, epoch, arrived_at[each], entry, reduced=each in reduced
                        )
                        for each in run[at : at + count]
                    }
                    sent = map(channel.send, messages.values())
                    outcomes = await asyncio.gather(*sent, return_exceptions=True)
            except BrokerUnreachable:
                if channel.is_usable:
                    raise
                await asyncio.wait({channel.lost})
                self._lost(channel)
                continue
            failed = [outcome for outcome in outcomes if outcome is not None]
            for each in run[at : at + (outcomes.index(failed[0]) if failed else count)]:
                self.subscription.ack(each.delivery)
                self._events.routed(partition)
                at += 1
            if failed and channel.lost.done():
                self._lost(channel)
                poisonous = await channel.poisonous()
                for each in [each for each, message in messages.items() if message in poisonous]:
                    reduced.add(each)
                    self._events.publish_turned_down(queue, "RabbitMQ closes the connection for this message")
            elif failed:
                other = next((error for error in failed if not isinstance(error, QueueFull)), None)
                if other is not None:
                    raise other
                self._events.publish_turned_down(self._names.requests, str(failed[0]))
                first.phase = "waiting"
                await asyncio.sleep(FULL_INTERVAL)

    def _end_epoch(self, why: str) -> None:
        if self.end is None:
            self.end = End(EndReason.EPOCH_OVER, f"the epoch has ended: {why}")
            self._events.epoch_ended(why)

    def _fail(self, what: str, error: BaseException) -> None:
        if isinstance(error, WorkerError):
            self._end_epoch(str(error))
        else:
            super()._fail(what, error)


@dataclass
class PartitionCapacity:
    """Limits each partition's backlog to the prefetch. The rest waits in PREFIX.requests."""

    limit: int
    _left: int = 0
    _in_flight: int = 0
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextlib.asynccontextmanager
    async def slots(self, wanted: int, channel: LoneChannel, queue: str) -> AsyncIterator[int]:
        """Wait until at least one more request fits, and reserve as many slots as are returned within this
        context. Raises BrokerUnreachable or TopologyError."""
        while self._left <= 0:
            async with self._looking:
                if self._left > 0:
                    break
                left = self.limit - self._in_flight  # read first: one confirmed meanwhile counts twice
                self._left = left - (await look(channel.connection, queue)).ready
                if self._left <= 0:
                    await asyncio.sleep(FULL_INTERVAL)
        count = min(wanted, self._left)
        self._left -= count
        self._in_flight += count
        try:
            yield count
        finally:
            self._in_flight -= count
