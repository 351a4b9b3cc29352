"""Taking requests from the queue, subscription after subscription (contract §2, §5, §6).

A subscription ends because the connection is lost, because deliveries have been held for too long, or
because the worker is told to stop. In each case the unsettled deliveries are the broker's again before
the next one begins, and in their order. For that, each subscription takes as many as the one before
could hold: a quorum queue serves what was returned first, and puts what is returned again behind it,
so giving back only a part of it would let the newer overtake the older.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from worker.amqp.connection import Connection, connect
from worker.amqp.consumer import Delivery, Subscription
from worker.broker import topology
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable, TopologyError
from worker.events import EventListener
from worker.pipeline.journey import Journeys
from worker.settings import Settings

RECONNECT = (0.1, 5.0)  # seconds; first and longest wait
POLL_INTERVAL = 0.1  # seconds between looks at what is held
HELD = "held for too long"
DEFECT_PAUSE = 1.0  # seconds
LONGEST_HELD = 1700.0  # seconds, drain included; RabbitMQ ends a consumer that holds a delivery for 1800


class Intake:
    """Subscribes and subscribes again until told to stop."""

    def __init__(
        self,
        settings: Settings,
        journeys: Callable[[Subscription], Journeys],
        prepare: Callable[[], Awaitable[None]],
        events: EventListener,
    ) -> None:
        self._settings = settings
        self._journeys_for = journeys
        self._prepare = prepare
        self._events = events
        self._queue = Topology(settings.prefix).requests
        self._stopping = asyncio.Event()
        self._returned = 0  # times that deliveries were held for too long
        self._spent: dict[tuple[str, int], int] = {}  # attempts of what this worker gave back
        self._subscription: Subscription | None = None
        self._journeys: Journeys | None = None

    @property
    def subscription(self) -> Subscription | None:
        """The subscription that stands now."""
        current = self._subscription
        return current if current is not None and not current.ended.done() else None

    @property
    def lanes(self) -> int:
        return self._journeys.lanes if self._journeys is not None else 0

    def stop(self) -> None:
        """Drain and return from `run`."""
        if not self._stopping.is_set():
            self._events.draining()
            self._stopping.set()

    async def run(self) -> None:
        """Take requests until `stop`. Raises TopologyError if the broker objects are wrong at the start;
        later, and whatever else happens, it goes on trying."""
        failures, started = 0, False
        while not self._stopping.is_set():
            connection = None
            try:
                connection = await connect(self._settings, "consumer")
                self._events.consumer_connected()
                await topology.ensure(connection, self._settings)
                started = True
                await self._consume_on(connection)
                failures = 0
            except BrokerUnreachable as error:
                self._events.broker_unreachable(str(error))
            except TopologyError as error:
                if not started:
                    raise
                self._events.topology_wrong(str(error))
            finally:
                if connection is not None:
                    await connection.close()
            await self._pause(random.uniform(0, min(RECONNECT[1], RECONNECT[0] * 2**failures)))  # noqa: S311
            failures = min(failures + 1, 10)

    async def _consume_on(self, connection: Connection) -> None:
        """Subscribe on one connection, over and over, while nothing but our own wish ends it."""
        while connection.is_open and not self._stopping.is_set():
            if not await self._consume(connection):
                return

    async def _consume(self, connection: Connection) -> bool:
        """One subscription. True where the next one may follow on the same connection."""
        prefetch = self._settings.prefetch
        subscription = self._subscription = Subscription(connection, self._queue, prefetch)
        journeys = self._journeys = self._journeys_for(subscription)
        journeys.own_requeues, journeys.spent = self._returned, self._spent
        watch = _Watch(self._settings, subscription, journeys, self._stopping)
        door = _ActivationBarrier(self._prepare, journeys.begin, self._events)

        def arrived(delivery: Delivery) -> None:
            if not watch.is_over:
                door.enter(delivery)

        try:
            await subscription.open(arrived)
            self._events.subscribed(prefetch)
            why = await watch.until_over()
            if subscription.ended.done():
                self._events.stale_deliveries(watch.unsettled)
                self._events.subscription_ended(why)
                return False
            self._returned += why == HELD
            self._spent = journeys.attempts
            door.close()
            grace = min(self._settings.shutdown_grace, LONGEST_HELD - self._settings.hold_limit)
            await journeys.drain(grace)
            self._events.returned(subscription.unsettled, why)
            if not await subscription.close():
                self._events.acknowledgements_unheard()
        finally:
            door.close()
            # Calls of a lost connection end at once: a late one could overwrite a newer registration.
            await journeys.cancel()
            await subscription.close()
        if journeys.failed.is_set():
            await self._pause(DEFECT_PAUSE)
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


class _ActivationBarrier:
    """Holds the first deliveries back, in order, until what must precede them is done."""

    def __init__(
        self, prepare: Callable[[], Awaitable[None]], begin: Callable[[Delivery], None], events: EventListener
    ) -> None:
        self._prepare = prepare
        self._begin = begin
        self._events = events
        self._held: list[Delivery] | None = []
        self._opening: asyncio.Task[None] | None = None

    def enter(self, delivery: Delivery) -> None:
        if self._held is None:
            self._begin(delivery)
            return
        self._held.append(delivery)
        if self._opening is None:
            self._events.active()
            self._opening = asyncio.create_task(self._open(), name="prepare")

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> None:
        await self._prepare()
        held, self._held = self._held or [], None
        for delivery in held:
            self._begin(delivery)


class _Watch:
    """Watches one subscription for a reason to end it."""

    def __init__(
        self, settings: Settings, subscription: Subscription, journeys: Journeys, stopping: asyncio.Event
    ) -> None:
        self._hold_limit = settings.hold_limit
        self._subscription = subscription
        self._journeys = journeys
        self._stopping = stopping
        self._why = ""
        self.unsettled = 0

    @property
    def is_over(self) -> bool:
        """Whether it is to end: what still arrives goes back with the rest."""
        return bool(self._why)

    async def until_over(self) -> str:
        """Return why the subscription is over, or is to end."""
        ended = self._subscription.ended
        while not self._why and not ended.done():
            self.unsettled = self._subscription.unsettled
            await asyncio.wait({ended}, timeout=POLL_INTERVAL)
            self._why = self._reason()
        return ended.result() if ended.done() else self._why

    def _reason(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if self._journeys.failed.is_set():
            return "a journey failed"
        oldest = self._subscription.oldest
        if oldest is not None and time.monotonic() - oldest.arrived_at > self._hold_limit:
            return HELD
        return ""
