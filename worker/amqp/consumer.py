"""The consumer of the requests queue: one subscription, from its channel's opening to its end.

A delivery belongs to the subscription that it came in, and is settled there once or not at all: when the
subscription has ended, the broker has the delivery back and settling it is a no-op.
"""

import asyncio
import math
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import aiormq.abc

from worker.amqp import frames
from worker.amqp.connection import Channel, Connection, broker_errors, close_channel, describe
from worker.amqp.properties import Properties
from worker.errors import BrokerUnreachable

RPC_TIMEOUT = 5.0  # seconds
# Longer than a busy broker takes: an unanswered request closes the channel, and every delivery returns.
LEASE_TIMEOUT = 30.0  # seconds
LEASE_RETRY_INTERVAL = 0.5  # seconds, where the queue's leader did not answer
LEASE_RENEWAL_INTERVAL = (
    3.0  # seconds between proofs that the broker still knows this consumer, with the longest lease
)
# A proof counts from when it was asked for. RabbitMQ gives a silent client up after one heartbeat at the
# earliest, so within this share of it no other consumer can have been given the deliveries.
LEASE = 8.0  # seconds; the longest
LEASE_SHARE = 0.8  # of a heartbeat that the URL makes shorter than usual

BARRIER = "barrier"  # consumer tag

DELIVERY_COUNT = "x-delivery-count"
COUNTS = frozenset({DELIVERY_COUNT, "x-acquired-count"})  # the queue's own headers; the second since 4.3


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivered request, as plain data; `tag` means something to its subscription only."""

    tag: int
    body: bytes
    properties: Properties
    redelivered: bool
    arrived_at: float  # monotonic seconds

    @property
    def times_returned(self) -> int:
        """How often it was delivered before and not settled."""
        count = self.properties.header(DELIVERY_COUNT) if self.redelivered else 0
        return count if isinstance(count, int) else 0


class Subscription:
    """Deliveries of one channel. `ended` is done when it is over, with the reason."""

    def __init__(self, connection: Connection, queue: str, prefetch: int) -> None:
        self._connection = connection
        self._queue = queue
        self.prefetch = prefetch
        self._lease = min(LEASE, (connection.heartbeat or math.inf) * LEASE_SHARE)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.depth = 0
        self._channel: Channel | None = None
        self._tap: frames.FrameInterceptor | None = None
        self._unsettled: dict[int, Delivery] = {}
        self._finished: list[int] = []
        self._flushing = False
        self._has_acked = False
        self._lease_renewed_at = 0.0
        self._proof: asyncio.Event = asyncio.Event()
        self._lease_task: asyncio.Task[None] | None = None

    @property
    def connection(self) -> Connection:
        """The connection that it consumes on."""
        return self._connection

    @property
    def lease_age(self) -> float:
        """Seconds since the broker last confirmed, at the earliest, that this consumer is alive."""
        return time.monotonic() - self._lease_renewed_at

    @property
    def unsettled(self) -> int:
        """Deliveries that are neither acknowledged nor returned."""
        return len(self._unsettled)

    @property
    def oldest(self) -> Delivery | None:
        """The unsettled delivery that is held longest."""
        return next(iter(self._unsettled.values()), None)

    async def open(self, on_delivery: Callable[[Delivery], None]) -> None:
        """Begin to consume. Raises BrokerUnreachable."""
        channel = self._channel = await self._connection.channel()
        channel.closing.add_done_callback(self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

        loop = asyncio.get_running_loop()

        def arrived(method: bytes, properties: Properties, body: bytes) -> None:
            if self.ended.done():
                return
            tag, redelivered = frames.delivered(method)
            delivery = Delivery(tag, body, properties, redelivered, time.monotonic())
            self._unsettled[tag] = delivery
            # Not from here: what goes wrong with one delivery must not end the connection.
            loop.call_soon(begin, delivery)

        def begin(delivery: Delivery) -> None:
            if not self.ended.done():
                on_delivery(delivery)

        self._tap = self._connection.tap(channel, arrived)
        asked_at = time.monotonic()
        with broker_errors("The consumer could not start"):
            async with asyncio.timeout(RPC_TIMEOUT * 3):
                await channel.basic_qos(prefetch_count=self.prefetch)
                await channel.basic_consume(self._queue, _never)
        self._lease_renewed_at = asked_at
        self._lease_task = asyncio.create_task(self._keep_lease(), name="subscription-prover")

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge, once; a delivery that is settled or whose subscription has ended is left alone.
        Acknowledgements of one turn of the loop travel together."""
        if self.ended.done() or self._unsettled.pop(delivery.tag, None) is None:
            return
        self._finished.append(delivery.tag)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def ensure_lease(self) -> None:
        """Return at once while the broker is known to count this consumer as alive, else when that is
        proved anew. A worker that was frozen must not make a call for deliveries it has lost."""
        while time.monotonic() - self._lease_renewed_at > self._lease:
            await self._proof.wait()

    async def close(self) -> bool:
        """End it: unsettled deliveries go back to the queue in their order. False where the broker did not
        answer: then requests that were acknowledged may be delivered, and answered, again. Never raises."""
        heard = True
        channel = self._channel
        if channel is not None and not self.ended.done():
            try:
                with broker_errors("closing"):
                    async with asyncio.timeout(LEASE_TIMEOUT):
                        self._flush()
                        await self._until_acknowledged(channel)
            except BrokerUnreachable:
                heard = False
            self._end("closed")
            await close_channel(channel, RPC_TIMEOUT)
        self._end("closed")
        return heard

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        self._end(describe(reason) if reason else "channel closed")

    def _on_cancelled(self, _: object) -> None:
        self._end("the broker cancelled the consumer")

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)
            self._unsettled.clear()
            self._finished.clear()
            if self._lease_task is not None:
                self._lease_task.cancel()

    def _flush(self) -> None:
        self._flushing = False
        if self._finished and not self.ended.done() and self._tap is not None and self._tap.is_open:
            self._has_acked = True
            self._connection.write(self._acks())

    def _acks(self) -> bytes:
        """One `multiple` up to the lowest unsettled delivery, and one for each finished beyond it."""
        assert self._channel is not None
        number = self._channel.number
        finished, self._finished = sorted(self._finished), []
        lowest = next(iter(self._unsettled), None)
        split = len(finished) if lowest is None else bisect_left(finished, lowest)
        acks = [frames.ack(number, finished[split - 1], multiple=True)] if split else []
        acks += [frames.ack(number, tag) for tag in finished[split:]]
        return b"".join(acks)

    async def _until_acknowledged(self, channel: Channel) -> None:
        """Wait until the queue knows of all acknowledgements. Of many the broker's channel keeps some back,
        until the queue has taken the first ones, and drops them if it is closed meanwhile. To add and to
        cancel a consumer goes through the queue, behind those first ones, and then comes the rest's turn.
        Cancelling the real one could let another start on what lies behind our unsettled deliveries."""
        if self._has_acked:
            await channel.basic_consume(self._queue, _never, consumer_tag=BARRIER)
            await channel.basic_cancel(BARRIER)
            await self._round_trip(channel)

    async def _keep_lease(self) -> None:
        channel = self._channel
        assert channel is not None
        while True:
            asked_at = time.monotonic()
            try:
                with broker_errors("The consumer is not proved"):
                    async with asyncio.timeout(LEASE_TIMEOUT):
                        consumers = await self._round_trip(channel)
            except BrokerUnreachable as error:
                self._end(str(error))
                return
            if consumers:
                self._lease_renewed_at = asked_at
                self._proof.set()
                self._proof.clear()
                await asyncio.sleep(LEASE_RENEWAL_INTERVAL * self._lease / LEASE)
            elif self.lease_age > LEASE_TIMEOUT:
                self._end("the queue's leader does not answer")
                return
            else:
                await asyncio.sleep(LEASE_RETRY_INTERVAL)

    async def _round_trip(self, channel: Channel) -> int:
        """How many consumers the queue has. RabbitMQ answers with none, and no messages, where the queue's
        leader did not answer in a quarter of a second."""
        declared = await channel.queue_declare(self._queue, passive=True)
        if declared.consumer_count:
            self.depth = declared.message_count or 0
        return declared.consumer_count or 0


def delivery_of(message: aiormq.abc.DeliveredMessage) -> Delivery:
    """A message that our connection delivered, as plain data."""
    properties = message.header.properties
    assert isinstance(properties, Properties)
    return Delivery(
        tag=message.delivery_tag or 0,
        body=message.body,
        properties=properties,
        redelivered=bool(message.redelivered),
        arrived_at=time.monotonic(),
    )


async def _never(_: object) -> None:
    """Stands where the client wants a callback; deliveries come through the tap."""
