"""The router: the active consumer of PREFIX.requests, which puts each request into the partition of its
resource (contract §10). tests/models/partition_protocol.py describes the protocol and checks it.

Requests of one resource go one after the other: one is acknowledged once its partition has confirmed it, and
only then is the next one published. Requests that validation rejects are settled here.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b

from worker.amqp.consumer import Subscription
from worker.amqp.ledger import Message
from worker.broker.topology import Topology
from worker.contract.registration import Rejection
from worker.contract.settlement import Resource
from worker.errors import QueueFull, Unroutable, WorkerError
from worker.partitions.log import PartitionLog
from worker.partitions.message import barrier, routed
from worker.partitions.routing_channel import RouterChannel
from worker.pipeline.journey import Identity, Journeys, Tools, identity
from worker.pipeline.request import Request

FULL_INTERVAL = 0.05  # seconds between looks at a partition that is full


def partition_of(resource: Resource, partitions: int) -> int:
    """The partition of a resource, from 1 to `partitions`."""
    digest = blake2b(digest_size=8, person=b"ott-partition")
    for part in (resource.account or "", resource.platform, resource.id):
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(4) + encoded)
    return 1 + int.from_bytes(digest.digest()) % partitions


class Router(Journeys):
    """The router of one subscription: one epoch, on one channel."""

    def __init__(
        self,
        subscription: Subscription,
        tools: Tools,
        partitions: int,
        log: PartitionLog,
        channel: RouterChannel,
        turned_down: set[Identity],
    ) -> None:
        """`turned_down`: requests that RabbitMQ turned down with their publisher's headers and properties."""
        super().__init__(subscription, tools)
        self._epoch = 0
        self._partitions = partitions
        self._log = log
        self._channel = channel
        self._turned_down = turned_down
        self._routing: dict[Message, Identity] = {}
        self._names = Topology(self._settings.prefix)
        numbers, prefetch = range(1, partitions + 1), self._settings.prefetch
        self._capacity = {number: PartitionCapacity(prefetch) for number in numbers}

    async def take_over(self) -> None:
        """Claim an epoch, and return when every partition has settled everything that earlier routers put
        there. If that fails, the epoch is over."""
        started = time.monotonic()
        try:
            await self._channel.open()
            self._channel.lost.add_done_callback(lambda lost: self._end_epoch(lost.result()))
            self._epoch = await self._log.claim(self._partitions)
            # A worker that was frozen meanwhile must not claim an epoch behind the one of its successor.
            await self._subscription.renew_lease()
            await self._pass_barrier()
        except WorkerError as error:
            self._end_epoch(str(error))
        if self.over:
            await asyncio.get_running_loop().create_future()  # until the subscription ends
        self._events.epoch_began(self._epoch, self._partitions, time.monotonic() - started)

    async def cancel(self) -> None:
        """Stop at once. A request that was published but not acknowledged is delivered again."""
        await self._lanes.cancel()
        await self._channel.close()
        for message in await self._channel.poisonous() & self._routing.keys():
            self._turned_down.add(self._routing[message])
            self._events.publish_turned_down(message.queue, "RabbitMQ closes the connection for this message")

    async def _pass_barrier(self) -> None:
        waiting = set(range(1, self._partitions + 1)) | self._log.partitions
        for partition in sorted(waiting):
            try:
                await self._channel.send(barrier(self._names.partition(partition), self._epoch))
            except Unroutable:
                if partition <= self._partitions:
                    raise
                waiting.discard(partition)  # it was pruned
        log, epoch = self._log, self._epoch
        await log.until(lambda: all(log.barrier(partition).epoch >= epoch for partition in waiting))
        for partition in waiting:
            self._clock.raise_floor(log.barrier(partition).newest_arrival)
        if any(log.barrier(partition).epoch > epoch for partition in waiting):
            raise WorkerError("another worker is the router")

    async def _process(self, request: Request) -> None:
        if isinstance(request.parsed, Rejection) or request.resource is None:
            await super()._process(request)
            return
        partition = partition_of(request.resource, self._partitions)
        queue = self._names.partition(partition)
        # A replay's `received_at` is not the time of its arrival.
        arrived_at = self._clock.stamp() if request.is_replay else request.received_at
        this = identity(request)
        reduced = this in self._turned_down
        message = routed(request.delivery, queue, self._epoch, arrived_at, self._names.entry, reduced=reduced)
        self._routing[message] = this
        try:
            async with self._capacity[partition].slot(self._channel, queue):
                await self._publish(message, request)
        except WorkerError as error:
            self._end_epoch(str(error))
            await self._until_the_end(request)
        except Exception as error:
            self._events.processing_failed(request.id, type(error).__name__)
            self.failed.set()
            await self._until_the_end(request)
        self._subscription.ack(request.delivery)
        del self._routing[message]
        self._turned_down.discard(this)
        self._events.routed(partition)

    def _pick(self, waiting: Sequence[Request]) -> Request:
        """Always the oldest: the partition's worker decides which requests of a resource need no call."""
        return waiting[0]

    async def _until_the_end(self, request: Request) -> None:
        """Let no newer request of the resource overtake this one before the subscription ends."""
        request.phase = "waiting"
        await asyncio.get_running_loop().create_future()

    async def _publish(self, message: Message, request: Request) -> None:
        while True:
            await self._subscription.ensure_lease()
            request.phase = "settling"
            try:
                await self._channel.send(message)
            except QueueFull as error:
                # On the same channel, and before any newer request of the resource.
                self._events.publish_turned_down(self._names.requests, str(error))
                request.phase = "waiting"
                await asyncio.sleep(FULL_INTERVAL)
            else:
                return

    def _end_epoch(self, why: str) -> None:
        if not self.over:
            self.over = f"the epoch has ended: {why}"
            self._events.epoch_ended(why)


class PartitionCapacity:
    """Caps each partition's backlog at the prefetch. The rest waits in PREFIX.requests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = 0
        self._on_their_way = 0
        self._looking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def slot(self, channel: RouterChannel, queue: str) -> AsyncIterator[None]:
        """Wait until one more fits in, which is on its way within this context. Raises
        BrokerUnreachable."""
        while self._left <= 0:
            async with self._looking:
                if self._left > 0:
                    break
                self._left = self._limit - self._on_their_way - await channel.depth(queue)
                if self._left <= 0:
                    await asyncio.sleep(FULL_INTERVAL)
        self._left -= 1
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1
