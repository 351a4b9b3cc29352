"""The consumer of a queue: one subscription, from its channel's opening to its end.

A delivery belongs to the subscription that it came in. There it is settled once, or not at all: when the
subscription has ended, the broker has the delivery back, and settling it does nothing.
"""

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
TURN_BYTES = 256 * 2**10  # bytes of deliveries that are handed over in one turn of the event loop
RPC_TIMEOUT = 5.0  # seconds
# Longer than a busy broker needs (a time-out closes the channel and requeues everything), shorter than the
# 45 s after which partitioned nodes hand deliveries to another consumer.
LEASE_TIMEOUT = 30.0  # seconds
LEASE_RETRY_INTERVAL = 0.5  # seconds, where the queue's leader did not answer
LEASE_RENEWAL_INTERVAL = 3.0  # seconds, with the longest lease
# The lease counts from when the broker was asked. RabbitMQ gives a silent client up after one heartbeat at
# the earliest, so within this share of it no other consumer can have been given the deliveries.
LEASE = 8.0  # seconds; the longest
LEASE_SHARE = 0.8  # of a heartbeat that the URL makes shorter than usual

FLUSH, VOTE = "flush", "vote"  # consumer tags
# Asked for on consuming, so that no policy shortens it unnoticed (contract §6).
CONSUMER_TIMEOUT = 1_800_000  # milliseconds that the broker lets a consumer hold a delivery

DELIVERY_COUNT = "x-delivery-count"
COUNTS = frozenset({DELIVERY_COUNT, "x-acquired-count"})  # the queue's own headers; the second since 4.3


class EndReason(Enum):
    """Why a subscription ends, with its text for people."""

    # On the broker's side, or by a loss:
    LOST = "the connection or the channel was lost"
    CANCELLED = "the broker cancelled the consumer (the queue is gone, or the consumer time-out is over)"
    SILENT = "the queue's leader does not answer"
    NO_MAJORITY = "most nodes of the queue do not answer, as in a network partition"
    UNDELIVERABLE = Cause.UNDELIVERABLE.value
    NOT_RENEWED = "the lease is not renewed any more"
    # By this worker, which gives its deliveries back:
    CLOSED = "closed"
    STOPPING = "stopping"
    FAILED = "a journey failed"
    PAUSED = "paused by order"
    HELD = "held for too long"
    MEMORY_LIMIT = "memory limit for unsettled deliveries reached"
    EPOCH_OVER = "the epoch has ended"

    @property
    def is_healthy(self) -> bool:
        """Whether the worker gives its deliveries back in good health: then they are not suspected of having
        crashed it."""
        kinds = EndReason
        return self in (kinds.PAUSED, kinds.HELD, kinds.MEMORY_LIMIT, kinds.EPOCH_OVER)


class End(NamedTuple):
    """The end of a subscription, with the broker's or the client's own words where it has some."""

    reason: EndReason
    detail: str = ""

    def __str__(self) -> str:
        return self.detail or self.reason.value


def lease_clock() -> float:
    """Seconds, in which the time counts that the machine was suspended (contract §6)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivered message, as plain data. `tag` means something to its subscription only."""

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
        """Whether its body is beyond what the subscription keeps."""
        return self.dropped > 0

    @property
    def size(self) -> int:
        """Bytes of the body, kept or not."""
        return self.dropped or len(self.body)

    @property
    def times_returned(self) -> int:
        """How often it was delivered before and not settled."""
        count = self.properties.header(DELIVERY_COUNT) if self.redelivered else 0
        return count if isinstance(count, int) else 0


def delivery_of(method: bytes, properties: Properties, body: bytes, dropped: int) -> Delivery:
    """A Basic.Deliver and its content, as plain data."""
    tag, redelivered = frames.delivered(method)
    exchange, key = frames.route(method)
    return Delivery(tag, body, properties, redelivered, time.monotonic(), exchange, key, dropped)


@dataclass(eq=False)
class Subscription:
    """Deliveries of one channel. `ended` is done when it is over, with the reason.

    Memory is bounded whatever the messages. A body larger than `max_body_bytes` is dropped while it arrives
    (`Delivery.oversize`). When what is unsettled comes to HELD_BYTES, further deliveries are withheld: they
    stay unsettled, without their bodies, and are not handed over. Newer messages would overtake them if only
    they were given back. So they come again with the next subscription: end this one when it `is_spent`.
    """

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
        """Seconds since the queue's leader was last known to count this consumer as alive."""
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
        """The unsettled delivery that is held longest."""
        return next(iter(self._unsettled.values()), None)

    async def open(self, on_delivery: Callable[[Delivery], None]) -> None:
        """Begin to consume. Raises BrokerUnreachable."""
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
            """Hand over so many that the loop gets its turn. Not called by the interceptor: an error with one
            delivery must not end the connection, and not hold back the others."""
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
        # Without this task the lease is not renewed, and every call would wait for it.
        self._lease_task.add_done_callback(lambda _: self._end(EndReason.NOT_RENEWED))

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge, once; nothing where the delivery is settled or the subscription has ended.
        Acknowledgements of one turn of the loop travel together."""
        self._settle(delivery, self._acknowledged)

    def reject(self, delivery: Delivery) -> None:
        """Reject, once, without requeueing: the broker dead-letters the message. Nothing where the delivery
        is settled or the subscription has ended."""
        self._settle(delivery, self._rejected)

    async def ensure_lease(self) -> None:
        """Return at once while the queue is known to count this consumer as alive, else when that is
        confirmed. A worker that was frozen, or is cut off with a few of the broker's nodes, must not make a
        call for deliveries that it has lost."""
        while lease_clock() - self._lease_renewed_at > self._lease:
            self._lease_wanted.set()
            await self._lease_renewed.wait()

    async def renew_lease(self) -> None:
        """Return when the queue, asked from now on, has said that this consumer is alive. Once the
        subscription has ended it never does."""
        asked_at = lease_clock()
        while self._lease_renewed_at < asked_at:
            self._lease_wanted.set()
            await self._lease_renewed.wait()

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
                        await self._until_settled(channel)
            except BrokerUnreachable:
                heard = False
        self._end(EndReason.CLOSED)
        if channel is not None and self.connection.is_open:
            await close_channel(channel, RPC_TIMEOUT)  # where it ended by itself, its consumer may stand yet
        self.connection.open_votes.discard(self)
        return heard

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
            # RabbitMQ says the same of both.
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
        # Acknowledgements last, for a `multiple` takes all that is not settled yet: one up to the lowest
        # unsettled delivery, and one for each beyond it.
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
        """Wait until the queue has taken all acknowledgements. The broker's channel holds some of them back
        until the queue has taken the first ones, and drops them if the channel is closed meanwhile. What
        passes through the queue goes behind the first ones, and the others follow."""
        if self._has_settled:
            await self._pass_through_queue(channel, FLUSH)
            await self._round_trip(channel)

    async def _keep_lease(self) -> None:
        """Renew the lease, also without deliveries: after a network partition, RabbitMQ
        4.3 hands to a standby that was cut off what others have settled since."""
        channel = self._channel
        assert channel is not None
        while True:
            self._lease_wanted.clear()
            try:
                heard = await self._renew(channel)
            except BrokerUnreachable as error:
                self._end(EndReason.LOST, str(error))
                return
            if heard:
                await pause(LEASE_RENEWAL_INTERVAL * self._lease / LEASE, self._lease_wanted)
            elif self.silence > LEASE_TIMEOUT:
                self._end(EndReason.SILENT)
                return
            else:
                await asyncio.sleep(LEASE_RETRY_INTERVAL)

    async def _renew(self, channel: RawChannel) -> bool:
        """Whether the queue's leader counts this consumer as alive. A leader that is cut off from the others
        goes on answering while they give the deliveries to another consumer. So only what most of the
        queue's nodes have agreed to renews the lease. Raises BrokerUnreachable if there is no answer."""
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
        """Return when most nodes of the queue have agreed to something. Raises BrokerUnreachable. Where they
        do not, RabbitMQ ends the whole connection after a while, with an internal error."""
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
        """Add and cancel a throw-away consumer: both go through the quorum queue's log, so most of its nodes
        have agreed when this returns. Cancelling the real consumer would activate a standby behind our
        unsettled deliveries."""
        await channel.basic_consume(self._queue, no_callback, consumer_tag=tag)
        await channel.basic_cancel(tag)

    async def _round_trip(self, channel: RawChannel) -> int:
        """The number of the queue's consumers. RabbitMQ reports no consumers and no messages if the queue's
        leader does not answer within a quarter of a second."""
        return (await channel.queue_declare(self._queue, passive=True)).consumer_count or 0
