"""The worker's state, from its events and parts, and its record in the status stream (contract §9)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import partial

from worker.amqp.connection import cancel_all
from worker.broker.status import publish_status
from worker.contract.settlement import Settlement
from worker.contract.status import Blocked, GateState, GateStatus, WorkerState, WorkerStatus
from worker.events import EVENTS, EventListener
from worker.pipeline.flow import FlowState
from worker.release import version
from worker.service import Service

STOP_TIMEOUT = 2.0  # seconds for the last record
RATE_WINDOW = 10.0  # seconds; the shortest time over which the rate is measured


class WorkerPhase(EventListener):
    """The worker's state according to its events. Within the context `publish`, each event that is logged at
    info or above publishes a record."""

    def __init__(self) -> None:
        self.is_active = False
        self.is_draining = False
        self.gate_since: datetime | None = None
        self.paused_for = 0.0  # seconds of the outages that have ended
        self.connects = 0
        self._settled = 0
        self._marks = [(time.monotonic(), 0)] * 2  # (time, requests settled by then), for the rate
        self._has_changed, self.stopping = asyncio.Event(), asyncio.Event()
        published = [name for name, event in EVENTS.items() if event.level not in (None, "debug")]
        self.listen(**{name: partial(self._changed, getattr(self, name)) for name in published})
        self.listen(gate_reset=self.gate_opened)

    def active(self) -> None:
        self.is_active = True

    def subscription_ended(self, count: int, why: str) -> None:
        self.is_active = False

    def returned(self, count: int, why: str) -> None:
        self.is_active = False

    def draining(self) -> None:
        self.is_draining = True

    def consumer_connected(self) -> None:
        self.connects += 1

    def settled(self, settlement: Settlement, seconds: float) -> None:
        self._settled += 1

    def gate_closed(self, why: str) -> None:
        self.gate_since = datetime.now(UTC)

    def gate_opened(self, seconds: float) -> None:
        self.gate_since = None
        self.paused_for += seconds

    def _changed(self, handler: Callable[..., object], *values: object) -> None:
        handler(*values)
        self._has_changed.set()

    def rate(self) -> float:
        """The recent rate of settled requests, per second."""
        now, (_, last) = time.monotonic(), self._marks
        if now - last[0] >= RATE_WINDOW:
            self._marks = [last, (now, self._settled)]
        at, before = self._marks[0]
        return round((self._settled - before) / max(now - at, 1.0), 2)

    @contextlib.asynccontextmanager
    async def publish(self, service: Service) -> AsyncIterator[None]:
        """Publish the records of this service, and at the end one with the state `stopped`."""
        publishing = asyncio.create_task(
            publish_status(
                service.settings, lambda: describe(service, self), self._has_changed, self.stopping
            ),
            name="status",
        )
        try:
            yield
        finally:
            self.stopping.set()
            self._has_changed.set()
            await asyncio.wait({publishing}, timeout=STOP_TIMEOUT)
            await cancel_all(publishing)


def describe(service: Service, phase: WorkerPhase) -> WorkerStatus:
    """The present record."""
    return WorkerStatus(
        worker=service.name,
        version=version(),
        at=datetime.now(UTC),
        state=_state(service, phase),
        partitions=service.partitions.taken,
        gate=_gate(service, phase),
        paused=service.orders.pause,
        blocked=[Blocked(queue=q, why=why, since=since) for q, why, since in service.publisher.blocked],
        pace=service.flow.pace,
        in_flight=sum(each.unsettled for each in service.subscriptions),
        rate_per_second=phase.rate(),
        reconnects=max(0, phase.connects - 1),
    )


def _state(service: Service, phase: WorkerPhase) -> WorkerState:
    if phase.stopping.is_set():
        return "stopped"
    if phase.is_draining:
        return "draining"
    return "active" if gets_deliveries(service, phase) else "standby"


def gets_deliveries(service: Service, phase: WorkerPhase) -> bool:
    """Whether deliveries come to this worker, from the requests queue or from a partition."""
    return phase.is_active or bool(service.partitions.taken)


def _gate(service: Service, phase: WorkerPhase) -> GateStatus:
    account, flow = service.marketing_cloud.accounts.default, service.flow
    if account.refused_since is not None and not account.has_token:
        # No call can be made, although the gate closes only with the first request.
        return GateStatus(
            state="closed", why=account.trouble, since=account.refused_since, cause="credentials"
        )
    if not flow.is_pausing:
        return GateStatus(state="open")
    state: GateState = "opening" if flow.state is FlowState.OPENING else "closed"
    is_refused = flow.cause is not None and flow.cause.is_refusal
    return GateStatus(
        state=state, why=flow.why, since=phase.gate_since, cause="credentials" if is_refused else "outage"
    )
