"""Consuming requests from a queue, subscription after subscription (contract §2, §5, §6).

Before the next subscription begins, all unsettled deliveries are requeued in their order. Every subscription
has the same prefetch: a quorum queue delivers requeued messages first, and puts those that are requeued again
behind them. So after a subscription with a smaller prefetch, newer requests could overtake older ones."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.amqp.amqp10 import spend_deliveries
from worker.amqp.connection import Connection, pause
from worker.amqp.consumer import End, EndReason, Subscription
from worker.errors import BrokerUnreachable
from worker.pipeline.journey import Carried, Journeys, Tools

POLL_INTERVAL = 0.1  # seconds between checks for a reason to end a subscription, or a pause by order
UNDELIVERABLE_PAUSE = 5.0  # seconds, if no undeliverable message was found
PAUSES = {EndReason.FAILED: 1.0, EndReason.EPOCH_OVER: 0.5}  # seconds before the next subscription
LONGEST_HELD = 1700.0  # seconds, including the drain; RabbitMQ cancels a consumer that holds one for 1800


@dataclass(eq=False)
class Intake:
    """Subscribes to one queue, again and again. `journeys` creates the Journeys of a subscription."""

    tools: Tools
    queue: str
    journeys: Callable[[Subscription], Journeys]
    stopping: asyncio.Event
    _own_requeues: int = 0  # how often this worker requeued its deliveries without their fault
    _carried: Carried = field(default_factory=dict)  # of the requeued requests
    _has_undeliverable: bool = False
    _current: Journeys | None = None

    @property
    def subscription(self) -> Subscription | None:
        """The current subscription."""
        if self._current is None or self._current.subscription.ended.done():
            return None
        return self._current.subscription

    @property
    def lanes(self) -> int:
        """Resources with a request in progress."""
        return self._current.lanes if self._current is not None and self.subscription is not None else 0

    async def consume_on(self, connection: Connection) -> None:
        """Subscribe on one connection, again and again, until the broker or a loss ends a subscription."""
        while connection.is_open and not self.stopping.is_set():
            if self.tools.orders.pause is not None:
                await pause(POLL_INTERVAL, self.stopping)
            elif self._has_undeliverable:
                await self._remove_undeliverable(connection)
            elif not await self._consume(connection):
                return

    async def _remove_undeliverable(self, connection: Connection) -> None:
        """Return undeliverable messages until they reach the delivery limit, on another connection. Each
        delivery of one ends the connection, so all others in flight would approach the limit with it."""
        self._has_undeliverable, spent = False, 0
        with contextlib.suppress(BrokerUnreachable):
            spent = await spend_deliveries(
                self.tools.settings, connection, self.queue, self.tools.settings.prefetch
            )
        if spent:
            self._own_requeues += 1
            self.tools.events.undeliverable(self.queue, spent)
        else:  # each subscription brings the other messages nearer to the limit
            await pause(UNDELIVERABLE_PAUSE, self.stopping)

    async def _consume(self, connection: Connection) -> bool:
        """Run one subscription. True if the next one may use the same connection."""
        settings = self.tools.settings
        subscription = Subscription(connection, self.queue, settings.prefetch, settings.max_body_bytes)
        journeys = self._current = self.journeys(subscription)
        journeys.own_requeues = self._own_requeues
        journeys.carried_in = self._carried
        unsettled = 0
        try:
            await subscription.open(journeys.accept)
            self.tools.events.subscribed(self.queue, settings.prefetch)
            while (why := self._end(journeys)) is None:
                unsettled = subscription.unsettled
                await asyncio.wait({subscription.ended}, timeout=POLL_INTERVAL)
            if subscription.ended.done():
                self._lost(journeys, unsettled)
                return False
            await self._requeue(journeys, why)
        except BrokerUnreachable:
            if subscription.ended.done():
                self._lost(journeys, unsettled)
            raise
        finally:
            self._carried = journeys.carried_out
            # After a loss, calls end at once: a late one could overwrite a newer registration.
            await journeys.cancel()
            await subscription.close()
        if why.reason in PAUSES:
            await pause(PAUSES[why.reason], self.stopping)
        return True

    def _end(self, journeys: Journeys) -> End | None:
        """Why the subscription has ended or must end; None if it goes on."""
        subscription = journeys.subscription
        if subscription.ended.done():
            return subscription.ended.result()
        if journeys.end is not None:
            return journeys.end
        oldest = subscription.oldest
        reasons = {
            EndReason.STOPPING: self.stopping.is_set(),
            EndReason.PAUSED: self.tools.orders.pause is not None,
            EndReason.MEMORY_LIMIT: subscription.is_spent,
            EndReason.HELD: oldest is not None
            and time.monotonic() - oldest.arrived_at > self.tools.settings.hold_limit,
        }
        return next((End(why) for why, holds in reasons.items() if holds), None)

    def _lost(self, journeys: Journeys, unsettled: int) -> None:
        """The broker or a loss has ended the subscription."""
        why = journeys.subscription.ended.result()
        if why.reason is EndReason.UNDELIVERABLE:
            self._has_undeliverable = True
            self._own_requeues += 1
        journeys.report_end(why, unsettled)

    async def _requeue(self, journeys: Journeys, why: End) -> None:
        """End a subscription: requests in progress are completed, the others are requeued in their order."""
        self._own_requeues += why.reason.is_healthy
        await journeys.drain(
            min(self.tools.settings.shutdown_grace, LONGEST_HELD - self.tools.settings.hold_limit)
        )
        journeys.report_end(why, journeys.subscription.unsettled)
        if not await journeys.subscription.close():
            self.tools.events.acknowledgements_unconfirmed()
