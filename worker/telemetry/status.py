"""The worker's records in the status stream (contract §9)."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from worker.broker.status import StatusPublisher
from worker.contract.status import Blocked, GateState, GateStatus, WorkerState, WorkerStatus
from worker.events import EventListener
from worker.pipeline.flow import FlowState
from worker.release import version
from worker.service import Service
from worker.telemetry.state import WorkerPhase

STOP_TIMEOUT = 2.0  # seconds for the last record
RATE_WINDOW = 10.0  # seconds

# Events that change the record.
CHANGES = (
    "consumer_connected",
    "subscribed",
    "active",
    "subscription_ended",
    "returned",
    "partition_taken",
    "partition_left",
    "gate_closed",
    "gate_opening",
    "gate_closed_again",
    "gate_left",
    "gate_opened",
    "token_fetched",
    "token_refused",
    "publish_turned_down",
    "paused",
    "resumed",
    "draining",
)


class StatusFeed(EventListener):
    """Publishes the status while its context lasts, and at the end that the worker has stopped."""

    def __init__(self, phase: WorkerPhase) -> None:
        self._phase = phase
        self._publisher: StatusPublisher | None = None
        self.hear(**dict.fromkeys(CHANGES, self._changed))

    def _changed(self, *_: object) -> None:
        if self._publisher is not None:
            self._publisher.changed()

    @contextlib.asynccontextmanager
    async def publish(self, service: Service) -> AsyncIterator[None]:
        """A context in which the records of this service are published."""
        rate = _Rate()
        self._publisher = StatusPublisher(
            service.settings, lambda: describe(service, self._phase, rate.of(self._phase.settled_count))
        )
        publishing = asyncio.create_task(self._publisher.run(), name="status")
        try:
            yield
        finally:
            self._phase.has_stopped = True
            self._publisher.stop()
            await asyncio.wait({publishing}, timeout=STOP_TIMEOUT)
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)


def describe(service: Service, phase: WorkerPhase, rate: float = 0.0) -> WorkerStatus:
    """The record of this moment."""
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
        rate_per_second=rate,
        reconnects=max(0, phase.connects - 1),
    )


def _state(service: Service, phase: WorkerPhase) -> WorkerState:
    if phase.has_stopped:
        return "stopped"
    if phase.draining_since is not None:
        return "draining"
    return "active" if phase.is_active or service.partitions.taken else "standby"


def _gate(service: Service, phase: WorkerPhase) -> GateStatus:
    accounts, flow = service.marketing_cloud.accounts, service.flow
    if accounts.refused_since is not None and not accounts.has_token:
        # No call can be made, though the gate closes with the first request only.
        return GateStatus(
            state="closed", why=accounts.trouble, since=accounts.refused_since, cause="credentials"
        )
    if not flow.is_pausing:
        return GateStatus(state="open")
    state: GateState = "opening" if flow.state is FlowState.OPENING else "closed"
    is_refused = flow.cause is not None and flow.cause.is_refusal
    return GateStatus(
        state=state, why=flow.why, since=phase.gate_since, cause="credentials" if is_refused else "outage"
    )


class _Rate:
    """The recent rate of a growing counter, per second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def of(self, total: int) -> float:
        now = time.monotonic()
        self._seen.append((now, total))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RATE_WINDOW:
            self._seen.popleft()
        at, before = self._seen[0]
        return round((total - before) / max(now - at, 1.0), 2)
