"""The worker's records in the status stream (contract §9)."""

import asyncio
import os
import socket
import time
from collections import deque
from datetime import UTC, datetime
from typing import Self

from worker.broker.status_stream import StatusPublisher
from worker.contract.settlement import Settlement
from worker.contract.status import GateStatus, WorkerState, WorkerStatus
from worker.events import EventListener
from worker.release import version
from worker.service import Service
from worker.settings import Settings
from worker.telemetry.state import Phase

RATE_WINDOW = 10.0  # seconds

# Events that change the record. Those of the gate do too.
CHANGES = (
    "active",
    "subscription_ended",
    "returned",
    "partition_taken",
    "partition_left",
    "paused",
    "resumed",
    "draining",
)

OPEN = GateStatus(state="open")


class StatusFeed(EventListener):
    """Listens to the events, and publishes the resulting status while its context lasts."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._gate = OPEN
        self._connects = 0
        self._settled = 0
        self._rate = _Rate()
        self._publisher: StatusPublisher | None = None
        self.hear(**dict.fromkeys(CHANGES, self._changed))

    def publish(self, settings: Settings, service: Service) -> "_Publishing":
        """A context in which the records of this service are published."""
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name, release = f"{socket.gethostname()}:{os.getpid()}:{started}", version()
        self._publisher = StatusPublisher(settings, lambda: self._describe(service, name, release))
        return _Publishing(self._publisher)

    def _describe(self, service: Service, name: str, release: str) -> WorkerStatus:
        return WorkerStatus(
            worker=name,
            version=release,
            at=datetime.now(UTC),
            state=self._state(service),
            partitions=service.partitions.taken,
            gate=self._gate,
            paused=service.orders.pause,
            in_flight=sum(each.unsettled for each in service.subscriptions),
            rate_per_second=self._rate.of(self._settled),
            reconnects=max(0, self._connects - 1),
        )

    def _state(self, service: Service) -> WorkerState:
        if self._phase.draining_since is not None:
            return "draining"
        return "active" if self._phase.is_active or service.partitions.taken else "standby"

    def _changed(self, *_: object) -> None:
        if self._publisher is not None:
            self._publisher.changed()

    def consumer_connected(self) -> None:
        self._connects += 1
        self._changed()

    def gate_closed(self, why: str) -> None:
        self._gate = GateStatus(state="closed", why=why, since=datetime.now(UTC))
        self._changed()

    def gate_opening(self) -> None:
        self._gate = self._gate.model_copy(update={"state": "opening"})
        self._changed()

    def gate_closed_again(self, why: str) -> None:
        self._gate = self._gate.model_copy(update={"state": "closed", "why": why})
        self._changed()

    def gate_left(self, seconds: float) -> None:
        self._gate = OPEN
        self._changed()

    def gate_opened(self, seconds: float) -> None:
        self._gate = OPEN
        self._changed()

    def settled(self, settlement: Settlement, seconds: float) -> None:
        self._settled += 1


class _Publishing:
    def __init__(self, publisher: StatusPublisher) -> None:
        self._publisher = publisher

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publisher.run(), name="status")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


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
