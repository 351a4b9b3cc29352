"""The worker, put together: what `ott-worker run` runs."""

import asyncio
import time
from typing import Self

from worker.amqp.consumer import Subscription
from worker.amqp.publisher import Publisher
from worker.broker import topology
from worker.broker.control_stream import StandingOrders
from worker.broker.depths import QueueDepths
from worker.broker.encryption import Seals
from worker.broker.journal import Journal
from worker.broker.topology import Topology
from worker.events import EventListener, Tracing
from worker.marketing_cloud.client import MarketingCloud
from worker.pipeline.arrival_clock import ArrivalClock, CatchUp
from worker.pipeline.forward import Forwarder
from worker.pipeline.gate import Gate
from worker.pipeline.intake import Intake
from worker.pipeline.journey import Journeys
from worker.pipeline.replay_guard import ReplayGuard
from worker.pipeline.settle import Settler
from worker.settings import Settings


class Service:
    """One worker. `run` it inside its context; `stop` drains it."""

    def __init__(self, settings: Settings, events: EventListener, tracing: Tracing | None = None) -> None:
        settings.require_marketing_cloud()
        names = Topology(settings.prefix)
        self.settings = settings
        self.started_at = time.monotonic()
        self.publisher = Publisher(settings, events, topology.ensure)
        self.depths = QueueDepths(names, lambda: self.intake.connection)
        self._background: list[asyncio.Task[None]] = []
        self.marketing_cloud = MarketingCloud(settings, events, tracing)
        self.gate = Gate(settings.gate_after, settings.retry_base, events)
        self._events = events
        self._tracing = tracing
        self._clock = ArrivalClock()
        self._catch_up = CatchUp(settings, self._clock, events)
        self._replay_guard = ReplayGuard(settings, self._catch_up, events)
        self._forwarder = Forwarder(settings, self.marketing_cloud, self.gate)
        journal = Journal(self.publisher, names, self._clock) if settings.journal else None
        self._settler = Settler(self.publisher, journal, names, Seals(settings), events, tracing)
        self.orders = StandingOrders(settings, events)
        self.intake = Intake(settings, self._journeys, self._take_over, self.orders, events)

    async def __aenter__(self) -> Self:
        self.publisher.start()
        await self.marketing_cloud.__aenter__()
        self._background = [
            asyncio.create_task(self.depths.run(), name="depths"),
            asyncio.create_task(self.marketing_cloud.accounts.keep_default_token(), name="credentials"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._background:
            task.cancel()
        await self.publisher.stop()
        await self._replay_guard.close()
        await self._catch_up.close()
        await self.marketing_cloud.__aexit__()

    async def run(self) -> None:
        """Take requests until `stop`. Raises TopologyError if the broker objects are wrong at the start."""
        await self.intake.run()

    def stop(self) -> None:
        """Drain: finish what is under way, give the rest back, and let `run` return."""
        self.intake.stop()

    async def _take_over(self) -> None:
        """Before the first request of a subscription: take note of what other workers have done."""
        self._replay_guard.subscription_began()
        if self.settings.journal:
            await self._catch_up.run()

    def _journeys(self, subscription: Subscription) -> Journeys:
        return Journeys(
            self.settings,
            subscription,
            self._forwarder,
            self._settler,
            self._replay_guard,
            self._clock,
            self._events,
            self._tracing,
        )


async def run_until(service: Service, stop: asyncio.Event) -> None:
    """Run the service until `stop` is set, and drain it."""

    async def wait() -> None:
        await stop.wait()
        service.stop()

    waiting = asyncio.create_task(wait(), name="stop")
    try:
        async with service:
            await service.run()
    finally:
        waiting.cancel()
