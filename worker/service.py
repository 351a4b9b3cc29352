"""The worker as a whole: what `ott-worker run` runs."""

import asyncio
import os
import socket
import time
from datetime import UTC, datetime
from functools import partial

from worker.amqp.connection import Connection, connected, keep_connected
from worker.amqp.consumer import Subscription
from worker.amqp.publisher import Publisher
from worker.broker import topology
from worker.broker.encryption import Encryptor
from worker.broker.journal import Journal
from worker.broker.status import StandingOrders
from worker.broker.topology import Topology
from worker.contract.timestamps import ArrivalClock
from worker.errors import BrokerUnreachable, WorkerError
from worker.events import EventListener, Tracing
from worker.marketing_cloud.client import MarketingCloud
from worker.partitions.worker import Partitions
from worker.pipeline.flow import Flow
from worker.pipeline.forward import Forwarder
from worker.pipeline.intake import Intake
from worker.pipeline.journey import Tools
from worker.pipeline.replay_guard import ReplayGuard
from worker.pipeline.request import RequestParser
from worker.pipeline.settle import Settler
from worker.settings import Settings


class Service:
    """One worker. `run` runs it until `stop` has drained it."""

    def __init__(self, settings: Settings, events: EventListener, tracing: Tracing | None = None) -> None:
        settings.require_marketing_cloud()
        names = Topology(settings.prefix)
        self.settings = settings
        # A worker without OTT_PARTITIONS also drains partitions that an earlier setting left behind.
        streams = (names.journal, names.partition_log)
        self.publisher = Publisher(settings, events, streams)
        self.watch = topology.Watch(
            settings, lambda: self.connection, lambda: bool(self.publisher.blocked), events
        )
        self.marketing_cloud = MarketingCloud(settings, events, tracing)
        self.flow = Flow(
            time.monotonic,
            events,
            after=settings.gate_after,
            base=settings.retry_base,
            most=settings.prefetch,
            limit=settings.rate_limit,
            share=lambda: self.partitions.share,
        )
        self._events = events
        clock = ArrivalClock()
        journal = Journal(self.publisher, names.journal, lambda: clock.latest) if settings.journal else None
        encryptor = Encryptor(settings)
        self.orders = StandingOrders(settings, events)
        self.tools = Tools(
            settings,
            RequestParser(settings, encryptor, events),
            Forwarder(settings, self.marketing_cloud, self.flow),
            Settler(self.publisher, journal, names, encryptor, events, tracing),
            ReplayGuard(settings, journal, clock, events),
            clock,
            events,
            self.orders,
            self.publisher,
            tracing,
        )
        self._stopping = asyncio.Event()
        self._connection: Connection | None = None
        self._has_started = False
        self.name = f"{socket.gethostname()}:{os.getpid()}:{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        self.partitions = Partitions(self.name, self.tools, self._stopping)
        self.intake = Intake(self.tools, names.requests, self.partitions.journeys, self._stopping)

    async def run(self) -> None:
        """Process requests until `stop`; reconnects after every loss. Raises TopologyError if the broker
        objects are wrong at the start, and the error of a background task that ends: none may end
        unnoticed."""
        self.publisher.start()
        background = [
            asyncio.create_task(self.watch.run(), name="watch"),
            asyncio.create_task(self.orders.follow(), name="orders"),
            asyncio.create_task(self.marketing_cloud.accounts.keep_default_token(), name="credentials"),
        ]
        consuming = asyncio.create_task(
            keep_connected(
                partial(connected, self.settings, "consumer"),
                self._consume_on,
                self._connection_failed,
                until=self._stopping,
            ),
            name="consumer",
        )
        try:
            await asyncio.wait([consuming, *background], return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                if task.done():
                    task.result()
            await consuming
        finally:
            for task in (consuming, *background):
                task.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
            await self.publisher.stop()
            self.tools.replay_guard.close()
            await self.marketing_cloud.__aexit__()

    def stop(self) -> None:
        """Drain: finish the requests in progress, requeue the others, and let `run` return."""
        if not self._stopping.is_set():
            self._events.draining()
            self._stopping.set()

    @property
    def connection(self) -> Connection | None:
        """The consuming connection while it is open, also without a subscription (during a pause)."""
        current = self._connection
        return current if current is not None and current.is_open else None

    @property
    def subscriptions(self) -> list[Subscription]:
        """All current subscriptions."""
        intakes = [self.intake, *self.partitions.places.values()]
        return [subscription for each in intakes if (subscription := each.subscription) is not None]

    @property
    def lanes(self) -> int:
        """Resources with a request in progress."""
        return sum(each.lanes for each in (self.intake, *self.partitions.places.values()))

    @property
    def oldest_age(self) -> float:
        """Seconds since the oldest unsettled delivery arrived; 0 if there is none."""
        arrived = [oldest.arrived_at for each in self.subscriptions if (oldest := each.oldest) is not None]
        return time.monotonic() - min(arrived) if arrived else 0.0

    async def _consume_on(self, connection: Connection) -> None:
        self._connection = connection
        self._events.consumer_connected()
        await topology.ensure(connection, self.settings)
        self._has_started = True
        await self.orders.until_known()
        async with self.partitions.consumed(connection):
            await self.intake.consume_on(connection)

    def _connection_failed(self, error: WorkerError) -> None:
        if isinstance(error, BrokerUnreachable):
            self._events.broker_unreachable(str(error))
        elif self._has_started:
            self._events.topology_wrong(str(error))
        else:
            raise error
