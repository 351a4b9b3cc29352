"""Taking requests from the queue, subscription after subscription (contract §2, §5, §6).

A subscription ends because the connection is lost, because deliveries have been held for too long or are too
large to hold all of them at once, because an operator orders a pause (contract §9), or because the worker is
told to stop. Before the next one begins, all unsettled deliveries are back in the queue, in their order.
Each subscription has the same prefetch as the one before: a quorum queue delivers returned messages first,
and puts those that return once more behind them, so a subscription that took only a part of them would let
newer requests overtake older ones.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial

from worker.amqp.amqp10 import spend_deliveries
from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import Delivery, End, EndReason, Subscription
from worker.amqp.reconnect import pause
from worker.broker.status import StandingOrders
from worker.contract.settlement import Resource
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.pipeline.journey import Attempts, Identity, Journeys
from worker.settings import Settings

POLL_INTERVAL = 0.1  # seconds between checks for a reason to end a subscription, or a pause by order
PAUSES = {EndReason.FAILED: 1.0, EndReason.EPOCH_OVER: 0.5}  # seconds before the next subscription
LONGEST_HELD = 1700.0  # seconds, drain included; RabbitMQ ends a consumer that holds a delivery for 1800


class Intake:
    """Subscribes to one queue, again and again. `take_over` is awaited before a subscription's first
    request."""

    def __init__(
        self,
        settings: Settings,
        queue: str,
        journeys: Callable[[Subscription], Journeys],
        take_over: Callable[[Journeys], Awaitable[None]],
        orders: StandingOrders,
        stopping: asyncio.Event,
        events: EventListener,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._journeys_for = journeys
        self._take_over = take_over
        self._orders = orders
        self._stopping = stopping
        self._events = events
        self._own_requeues = 0  # times that this worker, in good health, gave its deliveries back
        self._carried_attempts: Attempts = {}  # of the requests in them
        self._one_by_one = 0  # deliveries that are still to be taken one at a time
        self._has_undeliverable = False
        self._overtaken: dict[Resource | None, Identity] = {}  # of those, what was given back alone
        self._subscription: Subscription | None = None
        self._journeys: Journeys | None = None

    @property
    def subscription(self) -> Subscription | None:
        """The subscription that stands now."""
        current = self._subscription
        return current if current is not None and not current.ended.done() else None

    @property
    def lanes(self) -> int:
        """Resources with a request under way."""
        return self._journeys.lanes if self._journeys is not None and self.subscription is not None else 0

    async def consume_on(self, connection: Connection) -> None:
        """Subscribe on one connection, again and again, as long as it is this worker that ends them."""
        while connection.is_open and not self._stopping.is_set():
            if self._orders.pause is not None:
                await pause(POLL_INTERVAL, self._stopping)
            elif self._has_undeliverable:
                await self._remove_undeliverable(connection)
            elif self._one_by_one:
                await self._consume_one_by_one(connection)
            elif not await self._consume(connection):
                return

    async def _remove_undeliverable(self, connection: Connection) -> None:
        """A message that RabbitMQ cannot deliver ended the connection, and all in flight came back with it,
        again and again, up to the delivery limit. So use up its deliveries at once, on a connection of its
        own. If it cannot be told from the others, take as many as were in flight one at a time."""
        self._has_undeliverable, spent = False, 0
        with contextlib.suppress(BrokerUnreachable):
            prefetch, version = self._settings.prefetch, connection.server_version
            spent = await spend_deliveries(self._settings, self._queue, prefetch, version)
        if spent:
            self._own_requeues += 1
            self._events.undeliverable(self._queue, spent)
        else:
            self._one_by_one = self._settings.prefetch

    async def _consume_one_by_one(self, connection: Connection) -> None:
        """One subscription that takes one request at a time, on a connection of its own: each is settled
        before the next one comes, and only the one that cannot be delivered reaches the limit. A request that
        must be given back in this mode moves behind the others; those for its resource are requeued behind
        it."""
        own = await connect(self._settings, "consumer one by one")
        connection.lost.add_done_callback(lambda _: own.abort())
        try:
            await self._consume(own)
        finally:
            await own.close()

    async def _consume(self, connection: Connection) -> bool:
        """One subscription. True if the next one may follow on the same connection."""
        is_careful = self._one_by_one > 0
        subscription = self._subscription = Subscription(
            connection,
            self._queue,
            1 if is_careful else self._settings.prefetch,
            self._settings.max_body_bytes,
        )
        journeys = self._journeys = self._journeys_for(subscription)
        journeys.own_requeues = self._own_requeues
        journeys.carried_attempts = self._carried_attempts
        journeys.overtaken = self._overtaken if is_careful else {}
        entrance, unsettled = _Entrance(partial(self._take_over, journeys), journeys, self._events), 0

        def arrived(delivery: Delivery) -> None:
            if not entrance.is_closed:
                self._one_by_one = max(0, self._one_by_one - 1)
                entrance.enter(delivery)

        try:
            await subscription.open(arrived)
            self._events.subscribed(subscription.prefetch)
            while (why := self._end(subscription, journeys, is_careful=is_careful)) is None:
                unsettled = subscription.unsettled
                await asyncio.wait({subscription.ended}, timeout=POLL_INTERVAL)
            entrance.close()
            if subscription.ended.done():
                self._lost(why, unsettled)
                return False
            await self._give_back(subscription, journeys, why)
        except BrokerUnreachable:
            if subscription.ended.done():
                self._lost(subscription.ended.result(), unsettled)
            raise
        finally:
            entrance.close()
            # Calls of a lost connection end at once: a late one could overwrite a newer registration.
            await journeys.cancel()
            await subscription.close()
            self._overtaken = journeys.overtaken | journeys.unfinished if is_careful else {}
            if self._overtaken:
                self._one_by_one = self._settings.prefetch + 1  # it comes once more itself
        if why.reason in PAUSES:
            await pause(PAUSES[why.reason], self._stopping)
        return True

    def _end(self, subscription: Subscription, journeys: Journeys, *, is_careful: bool) -> End | None:
        """Why a subscription has ended, or must end."""
        if subscription.ended.done():
            return subscription.ended.result()
        if journeys.end is not None:
            return journeys.end
        oldest = subscription.oldest
        reasons = {
            EndReason.STOPPING: self._stopping.is_set(),
            EndReason.PAUSED: self._orders.pause is not None,
            EndReason.MEMORY_LIMIT: subscription.is_spent,
            EndReason.RESUME_PREFETCH: is_careful and not self._one_by_one,
            EndReason.HELD: oldest is not None
            and time.monotonic() - oldest.arrived_at > self._settings.hold_limit,
        }
        return next((End(why) for why, holds in reasons.items() if holds), None)

    def _lost(self, why: End, unsettled: int) -> None:
        """The broker, or the loss of the connection, has ended a subscription."""
        if why.reason is EndReason.UNDELIVERABLE:
            self._has_undeliverable = True
            self._own_requeues += 1
        self._events.stale_deliveries(unsettled)
        self._events.subscription_ended(str(why))

    async def _give_back(self, subscription: Subscription, journeys: Journeys, why: End) -> None:
        """End a subscription from this side: what is under way ends, the rest goes back in its order."""
        self._own_requeues += why.reason.is_healthy
        self._carried_attempts = journeys.attempts
        await journeys.drain(min(self._settings.shutdown_grace, LONGEST_HELD - self._settings.hold_limit))
        self._events.returned(subscription.unsettled, str(why))
        if not await subscription.close():
            self._events.acknowledgements_unheard()


class _Entrance:
    """Holds a subscription's first deliveries back, in order, until the worker has taken over."""

    def __init__(
        self, take_over: Callable[[], Awaitable[None]], journeys: Journeys, events: EventListener
    ) -> None:
        self._take_over = take_over
        self._journeys = journeys
        self._events = events
        self._held: list[Delivery] | None = []
        self._opening: asyncio.Task[None] | None = None
        self.is_closed = False

    def enter(self, delivery: Delivery) -> None:
        """Let a delivery through, as soon as deliveries may pass."""
        if self._held is None:
            self._journeys.accept(delivery)
            return
        self._held.append(delivery)
        if self._opening is None:
            self._events.active()
            self._opening = asyncio.create_task(self._open(), name="take-over")

    def close(self) -> None:
        """Drop what is held back: it goes back to the queue with the rest, as what still arrives does."""
        self.is_closed = True
        if self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> None:
        try:
            await self._take_over()
        except Exception as error:
            self._events.processing_failed("take-over", type(error).__name__)
            self._journeys.end = End(EndReason.FAILED)
            return
        held, self._held = self._held or [], None
        for delivery in held:
            self._journeys.accept(delivery)
