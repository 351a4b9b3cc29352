"""What the worker is doing now: Prometheus gauges, and plain values for the probes."""

import asyncio
import platform
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.contract.settlement import Settlement
from worker.events import EventListener
from worker.release import version
from worker.service import Service

TICK = 0.5  # seconds
TICKS_KEPT = 60


class WorkerPhase(EventListener):
    """What the events say of this worker: what it does, and since when its gate is not open."""

    def __init__(self) -> None:
        self.is_active = False
        self.draining_since: float | None = None
        self.has_stopped = False
        self.gate_since: datetime | None = None
        self.connects = 0
        self.settled_count = 0
        self.hear(gate_left=self.gate_opened)

    def active(self) -> None:
        self.is_active = True

    def subscription_ended(self, why: str) -> None:
        self.is_active = False

    def returned(self, count: int, why: str) -> None:
        self.is_active = False

    def draining(self) -> None:
        self.draining_since = time.monotonic()

    def consumer_connected(self) -> None:
        self.connects += 1

    def settled(self, settlement: Settlement, seconds: float) -> None:
        self.settled_count += 1

    def gate_closed(self, why: str) -> None:
        self.gate_since = datetime.now(UTC)

    def gate_opened(self, seconds: float) -> None:
        self.gate_since = None


class LoopMonitor:
    """Measures how late the event loop runs: everything in this process waits for it."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=TICKS_KEPT)

    @property
    def lag(self) -> float:
        """Seconds by which the latest of the last ticks came too late."""
        return max(self._late, default=0.0)

    async def run(self) -> None:
        """Tick, until cancelled."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK)
            self._late.append(max(0.0, time.monotonic() - began - TICK))


class StateCollector(Collector):
    """The gauges."""

    def __init__(self, service: Service, phase: WorkerPhase, loop_monitor: LoopMonitor) -> None:
        self._service = service
        self._phase = phase
        self._loop_monitor = loop_monitor

    def collect(self) -> Iterable[Metric]:
        """All of them, as they are now."""
        service, intake = self._service, self._service.intake
        subscription = intake.subscription
        yield _gauge(
            "ott_consumer_subscribed", "1 while the consumer is registered.", subscription is not None
        )
        yield _gauge(
            "ott_consumer_active",
            "1 once deliveries come to this worker; until then it may be standing by.",
            subscription is not None and self._phase.is_active,
        )
        yield _gauge("ott_publisher_connected", "1 while replies can be published.", service.publisher.ready)
        yield _gauge(
            "ott_publisher_unconfirmed_messages",
            "Messages that the broker has not confirmed yet.",
            service.publisher.waiting,
        )
        in_flight = sum(each.unsettled for each in service.subscriptions)
        yield _gauge("ott_requests_in_flight", "Requests that were delivered and are not settled.", in_flight)
        yield _gauge("ott_lanes", "Resources with a request under way.", service.lanes)
        partitions = {str(number): 1 for number in service.partitions.taken}
        yield _gauge(
            "ott_partition_active", "1 for each partition that this worker has.", partitions, "partition"
        )
        yield _gauge(
            "ott_oldest_unsettled_request_age_seconds",
            "How long the oldest request in flight has been held.",
            oldest_age(service),
        )
        depths = "Messages that wait in a queue; left out where the broker has not told lately."
        yield _gauge("ott_queue_messages", depths, service.depths.known(), "queue")
        yield _gauge("ott_gate_closed", "1 while an outage pauses the worker.", service.flow.is_pausing)
        pace = service.flow.pace
        yield _gauge(
            "ott_pace_per_second",
            "Calls a second that a speed limit allows; -1 without one.",
            -1 if pace is None else pace,
        )
        is_paused = service.orders.pause is not None
        yield _gauge("ott_paused_by_order", "1 while an operator's pause stands.", is_paused)
        held = service.marketing_cloud.accounts.has_token
        yield _gauge("ott_token_held", "1 while the default account has a good token.", held)
        yield _gauge(
            "ott_event_loop_lag_seconds",
            "By how much the event loop came too late at most, lately.",
            self._loop_monitor.lag,
        )
        yield _build_info()


def oldest_age(service: Service) -> float:
    """Seconds that the oldest request in flight has been held, 0 without one."""
    arrived = [oldest.arrived_at for each in service.subscriptions if (oldest := each.oldest) is not None]
    return time.monotonic() - min(arrived) if arrived else 0.0


def _gauge(name: str, text: str, value: float | dict[str, int], label: str = "") -> Metric:
    if isinstance(value, dict):
        metric = GaugeMetricFamily(name, text, labels=(label,))
        for key, number in value.items():
            metric.add_metric((key,), number)
        return metric
    return GaugeMetricFamily(name, text, value=float(value))


def _build_info() -> Metric:
    metric = GaugeMetricFamily(
        "ott_build_info", "Always 1; which program this is.", labels=("version", "python")
    )
    metric.add_metric((version(), platform.python_version()), 1)
    return metric
