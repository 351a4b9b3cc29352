"""The consumer of a queue: one subscription, from the opening of its channel to its end.

A delivery belongs to its subscription and is settled there at most once. When the subscription has ended, the
broker has requeued the delivery, and settling it does nothing."""

import asyncio
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import aiormq.exceptions

from worker.amqp import frames
from worker.amqp.causes import Cause, broker_errors, describe
from worker.amqp.connection import Connection, RawChannel, close_channel, no_callback, pause
from worker.amqp.properties import Properties
from worker.amqp.transport import FrameInterceptor
from worker.errors import BrokerUnreachable

HELD_BYTES = 64 * 2**20  # bytes of unsettled deliveries in memory; further bodies are withheld
TURN_BYTES = 256 * 2**10  # bytes of deliveries that are passed on in one turn of the event loop
RPC_TIMEOUT = 5.0  # seconds
# Longer than a busy broker needs (a time-out closes the channel and requeues everything), shorter than the
# 45 s after which partitioned nodes hand deliveries to another consumer.
LEASE_TIMEOUT = 30.0  # seconds
LEASE_RETRY_INTERVAL = 0.5  # seconds, if the queue's leader did not answer
LEASE_RENEWAL_INTERVAL = 3.0  # seconds, with the longest lease
# A lease begins when the broker is asked. RabbitMQ drops a silent client after one heartbeat at the earliest,
# so within LEASE_SHARE of a heartbeat no other consumer can have received the deliveries.
LEASE = 8.0  # seconds; the longest
LEASE_SHARE = 0.8  # of a heartbeat that the URL makes shorter than the default

FLUSH, VOTE = "flush", "vote"  # consumer tags
# Set on Basic.Consume, so that no policy can shorten it (contract §6).
CONSUMER_TIMEOUT = 1_800_000  # milliseconds that a consumer may hold a delivery

DELIVERY_COUNT = "x-delivery-count"
COUNTS = frozenset({DELIVERY_COUNT, "x-acquired-count"})  # the queue's own headers; the second since 4.3


class EndReason(Enum):
    """Why a subscription ends, with its text."""

    # By the broker, or by a loss:
    LOST = "the connection or the channel was lost"
    CANCELLED = "the broker cancelled the consumer (the queue was deleted, or the consumer timeout expired)"
    SILENT = "the queue's leader does not answer"
    NO_MAJORITY = "most nodes of the queue do not answer, as in a network partition"
    UNDELIVERABLE = Cause.UNDELIVERABLE.value
    NOT_RENEWED = "the lease is no longer renewed"
    # By this worker, which requeues its deliveries:
    CLOSED = "closed"
    STOPPING = "stopping"
    FAILED = "processing failed"
    PAUSED = "paused by order"
    HELD = "held for too long"
    MEMORY_LIMIT = "memory limit for unsettled deliveries reached"
    EPOCH_OVER = "the epoch has ended"

    @property
    def is_healthy(self) -> bool:
        """Whether the worker requeues its deliveries for a reason that is not their fault: then they are not
        suspected of having crashed it."""
        kinds = EndReason
        return self in (kinds.PAUSED, kinds.HELD, kinds.MEMORY_LIMIT, kinds.EPOCH_OVER)


class End(NamedTuple):
    """The end of a subscription. `detail` is the broker's or the client library's text, if there is one."""

    reason: EndReason
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason.value


def lease_clock() -> float:
    """Seconds, including the time during which the machine was suspended (contract §6)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivered message, as plain data. `tag` is valid in its subscription only."""

    tag: int
    body: bytes
    properties: Properties
    redelivered: bool
    arrived_at: float  # monotonic seconds
    exchange: str = ""
    routing_key: str = ""
    dropped: int = 0  # bytes of a body that was not kept; `body` is empty then
    held: int = 0  # bytes that count towards the subscription's limit

    @property
    def oversize(self) -> bool:
        """Whether its body was too large to be kept."""
        return self.dropped > 0

    @property
    def size(self) -> int:
        """Bytes of the body, kept or not."""
        return self.dropped or len(self.body)

    @property
    def times_returned(self) -> int:
        """How often it was delivered before without being settled."""
        count = self.properties.header(DELIVERY_COUNT) if self.redelivered else 0
        return count if isinstance(count, int) else 0


def delivery_of(method: bytes, properties: Properties, body: bytes, dropped: int) -> Delivery:
    """A Basic.Deliver and its content, as plain data."""
    tag, redelivered = frames.delivered(method)
    exchange, key = frames.route(method)
    return Delivery(tag, body, properties, redelivered, time.monotonic(), exchange, key, dropped)


@dataclass(eq=False)
class Subscription:
    """The deliveries of one channel. `ended` is done, with the reason, when the subscription ends.

    Memory is bounded. A body larger than `max_body_bytes` is dropped while it arrives (`Delivery.oversize`).
    When unsettled deliveries reach HELD_BYTES, further ones are withheld: they stay unsettled, lose their
    bodies and are not passed on. Requeueing them alone would let newer messages overtake them. So they arrive
    again with the next subscription: close this one when it `is_spent`."""

    connection: Connection
    _queue: str
    prefetch: int
    _max_body_bytes: float = math.inf
    held_bytes: int = 0  # of unsettled deliveries in memory
    _channel: RawChannel | None = None
    _interceptor: FrameInterceptor | None = None
    _unsettled: dict[int, Delivery] = field(default_factory=dict)
    _acknowledged: list[int] = field(default_factory=list)
    _rejected: list[int] = field(default_factory=list)
    _inbox: deque[Delivery] = field(default_factory=deque)
    _is_withholding: bool = False
    _flushing: bool = False
    _has_settled: bool = False
    _lease_renewed_at: float = 0.0
    _lease_renewed: asyncio.Event = field(default_factory=asyncio.Event)
    _lease_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _lease_task: "asyncio.Task[None] | None" = None

    def __post_init__(self) -> None:
        self._lease = min(LEASE, (self.connection.heartbeat or math.inf) * LEASE_SHARE)
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()

    @property
    def silence(self) -> float:
        """Seconds since the last lease began: then the queue counted this consumer as alive."""
        return lease_clock() - self._lease_renewed_at

    @property
    def unsettled(self) -> int:
        """Deliveries that are neither acknowledged nor returned."""
        return len(self._unsettled)

    @property
    def is_spent(self) -> bool:
        """Whether deliveries are withheld, and most of the others are settled."""
        return self._is_withholding and self.held_bytes <= HELD_BYTES / 4

    @property
    def oldest(self) -> Delivery | None:
        """The unsettled delivery that arrived first."""
        return next(iter(self._unsettled.values()), None)

    async def open(self, on_delivery: Callable[[Delivery], None]) -> None:
        """Start consuming. Raises BrokerUnreachable."""
        channel = self._channel = await self.connection.raw_channel()
        channel.closing.add_done_callback(self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

        loop = asyncio.get_running_loop()

        def arrived(method: bytes, properties: Properties, body: bytes, dropped: int) -> None:
            if self.ended.done():
                return
            delivery = delivery_of(method, properties, body, dropped)
            self._unsettled[delivery.tag] = delivery
            if self._is_withholding:
                return
            delivery.held = len(body) + len(properties.raw("headers"))
            self.held_bytes += delivery.held
            if not self._inbox:
                loop.call_soon(hand_over)
            self._inbox.append(delivery)

        def hand_over() -> None:
            """Pass on TURN_BYTES, then let the loop run. The interceptor does not call this directly: an
            error with one delivery must neither end the connection nor hold up the others."""
            handed = 0
            try:
                while self._inbox and handed < TURN_BYTES and not self.ended.done():
                    delivery = self._inbox.popleft()
                    handed += delivery.held
                    on_delivery(delivery)
            finally:
                if self._inbox:
                    loop.call_soon(hand_over)

        self._interceptor = self.connection.intercept(channel, arrived, keeps_body=self._keeps_body)
        asked_at = lease_clock()
        with broker_errors("The consumer could not start"):
            async with asyncio.timeout(RPC_TIMEOUT * 3):
                await channel.basic_qos(prefetch_count=self.prefetch)
                await channel.basic_consume(
                    self._queue, no_callback, arguments={"x-consumer-timeout": CONSUMER_TIMEOUT}
                )
        self._lease_renewed_at = asked_at
        self._lease_task = asyncio.create_task(self._keep_lease(), name="subscription-lease")
        # Without this task every call would wait for a lease that is never renewed.
        self._lease_task.add_done_callback(lambda _: self._end(EndReason.NOT_RENEWED))

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge. Does nothing if the delivery is settled or the subscription has ended. The
        acknowledgements of one turn of the loop are sent together."""
        self._settle(delivery, self._acknowledged)

    def reject(self, delivery: Delivery) -> None:
        """Reject without requeueing: the broker dead-letters the message. Does nothing if the delivery is
        settled or the subscription has ended."""
        self._settle(delivery, self._rejected)

    async def ensure_lease(self) -> None:
        """Return at once while the lease is valid, else when it is renewed. A worker that was frozen, or is
        cut off with a minority of the nodes, must not make a call for deliveries that it has lost."""
        while lease_clock() - self._lease_renewed_at > self._lease:
            self._lease_wanted.set()
            await self._lease_renewed.wait()

    async def renew_lease(self) -> None:
        """Return when a lease that begins from now on is granted. Never returns once the subscription has
        ended."""
        asked_at = lease_clock()
        while self._lease_renewed_at < asked_at:
            self._lease_wanted.set()
            await self._lease_renewed.wait()

    async def close(self) -> bool:
        """End it: the broker requeues unsettled deliveries in their order. False if the broker did not
        answer: then acknowledged requests may be delivered, and answered, again. Never raises."""
        is_confirmed = True
        channel = self._channel
        if channel is not None and not self.ended.done():
            try:
                with broker_errors("closing"):
                    async with asyncio.timeout(LEASE_TIMEOUT):
                        self._flush()
                        await self._until_settled(channel)
            except BrokerUnreachable:
                is_confirmed = False
        self._end(EndReason.CLOSED)
        if channel is not None and self.connection.is_open:
            await close_channel(channel, RPC_TIMEOUT)  # the consumer may exist even if the subscription ended
        self.connection.open_votes.discard(self)
        return is_confirmed

    def _keeps_body(self, size: int) -> bool:
        if size > self._max_body_bytes:
            return False
        if self.held_bytes and self.held_bytes + size > HELD_BYTES:
            self._is_withholding = True
        return not self._is_withholding

    def _settle(self, delivery: Delivery, tags: list[int]) -> None:
        if self.ended.done() or self._unsettled.pop(delivery.tag, None) is None:
            return
        self.held_bytes -= delivery.held
        tags.append(delivery.tag)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        reason = None if closing.cancelled() else closing.exception()
        if isinstance(reason, aiormq.exceptions.ConnectionInternalError):
            # RabbitMQ gives the same error for both.
            self._end(EndReason.NO_MAJORITY if self.connection.open_votes else EndReason.UNDELIVERABLE)
        else:
            self._end(EndReason.LOST, describe(reason) if reason else "")

    def _on_cancelled(self, _: object) -> None:
        self._end(EndReason.CANCELLED)

    def _end(self, reason: EndReason, detail: str = "") -> None:
        if not self.ended.done():
            self.ended.set_result(End(reason, detail))
            self._inbox.clear()
            self._unsettled.clear()
            if self._lease_task is not None:
                self._lease_task.cancel()

    def _flush(self) -> None:
        self._flushing = False
        if self.ended.done() or self._interceptor is None or not self._interceptor.is_open:
            return
        # Rejections first, because a `multiple` acknowledges everything before it. One `multiple` covers all
        # up to the lowest unsettled delivery; each one beyond it is acknowledged on its own.
        acknowledged, rejected = sorted(self._acknowledged), self._rejected
        self._acknowledged, self._rejected = [], []
        channel, lowest = self._interceptor.channel, next(iter(self._unsettled), math.inf)
        split = bisect_left(acknowledged, lowest)
        settlements = [frames.reject(channel, tag) for tag in rejected]
        if split:
            settlements.append(frames.ack(channel, acknowledged[split - 1], multiple=True))
        settlements += [frames.ack(channel, tag) for tag in acknowledged[split:]]
        if settlements:
            self._has_settled = True
            self.connection.wire.write(b"".join(settlements))

    async def _until_settled(self, channel: RawChannel) -> None:
        """Wait until the queue has processed all acknowledgements. The broker's channel holds some of them
        back until the queue has processed the first ones, and drops them if it is closed meanwhile. A
        consumer that passes through the queue goes behind the first ones; the round trip follows the
        others."""
        if self._has_settled:
            await self._pass_through_queue(channel, FLUSH)
            await self._round_trip(channel)

    async def _keep_lease(self) -> None:
        """Renew the lease, also without deliveries: after a network partition, RabbitMQ 4.3 delivers messages
        that others have settled to a standby that was cut off."""
        channel = self._channel
        assert channel is not None
        while True:
            self._lease_wanted.clear()
            try:
                is_renewed = await self._renew(channel)
            except BrokerUnreachable as error:
                self._end(EndReason.LOST, str(error))
                return
            if is_renewed:
                await pause(LEASE_RENEWAL_INTERVAL * self._lease / LEASE, self._lease_wanted)
            elif self.silence > LEASE_TIMEOUT:
                self._end(EndReason.SILENT)
                return
            else:
                await asyncio.sleep(LEASE_RETRY_INTERVAL)

    async def _renew(self, channel: RawChannel) -> bool:
        """Renew the lease; False if the queue's leader does not answer. A leader that is cut off keeps
        answering while the other nodes deliver to another consumer. So only a command that most of the
        queue's nodes have agreed to renews the lease. Raises BrokerUnreachable if the broker does not
        answer."""
        asked_at = lease_clock()
        deadline = asyncio.get_running_loop().time() + LEASE_TIMEOUT
        with broker_errors("The lease could not be renewed"):
            async with asyncio.timeout_at(deadline):
                if not await self._round_trip(channel):
                    return False
        await self._vote(channel, deadline)
        self._lease_renewed_at = asked_at
        self._lease_renewed.set()
        self._lease_renewed.clear()
        return True

    async def _vote(self, channel: RawChannel, deadline: float) -> None:
        """Return when most nodes of the queue have agreed to a command. Raises BrokerUnreachable. If they do
        not, RabbitMQ closes the whole connection after a while, with an internal error."""
        votes = self.connection.open_votes
        votes.add(self)
        with broker_errors("The lease could not be renewed"):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._pass_through_queue(channel, VOTE)
            except (TimeoutError, aiormq.exceptions.ConnectionInternalError):
                raise BrokerUnreachable(EndReason.NO_MAJORITY.value) from None
        votes.discard(self)

    async def _pass_through_queue(self, channel: RawChannel, tag: str) -> None:
        """Add and cancel a second consumer. Both go through the quorum queue's log, so most of its nodes have
        agreed when this returns. Cancelling the real consumer would activate a standby while our deliveries
        are unsettled."""
        await channel.basic_consume(self._queue, no_callback, consumer_tag=tag)
        await channel.basic_cancel(tag)

    async def _round_trip(self, channel: RawChannel) -> int:
        """The number of the queue's consumers. RabbitMQ reports no consumers and no messages if the queue's
        leader does not answer within a quarter of a second."""
        return (await channel.queue_declare(self._queue, passive=True)).consumer_count or 0
