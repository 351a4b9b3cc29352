"""Prometheus metrics (contract §7: `/metrics`). Every label has a bounded set of values."""

import asyncio
import platform
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.contract.platforms import PLATFORMS
from worker.contract.settlement import Settlement
from worker.contract.words import NOT_ALLOWED, REASONS, STATUSES, UNROUTABLE
from worker.events import EventListener, TokenResult
from worker.release import version
from worker.service import Service
from worker.telemetry.status import WorkerPhase

CALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)  # seconds
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)  # seconds
TICK, TICKS_KEPT = 0.5, 60  # seconds, and so many of them

REPLY_REFUSALS = (UNROUTABLE, NOT_ALLOWED)
TOKEN_RESULTS = ("ok", "refused", "failed")
CONNECTIONS = ("consumer", "publisher")
OWN_QUEUES = ("replies", "dead", "journal")


class Metrics(EventListener, Collector):
    """Counts events. Where the values of a label are known, their counters start at zero before the first
    event, so that the first event shows as an increase."""

    def __init__(self, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        """`dropped_lines` tells how many log lines were dropped so far."""
        self._dropped_lines = dropped_lines
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._counters = CollectorRegistry(auto_describe=False)
        counter = self._counter
        self._requests = counter(
            "ott_requests", "Settled requests by outcome.", status=STATUSES, platform=(*PLATFORMS, "none")
        )
        self._attempts = counter("ott_attempts", "Calls spent on settled requests, outages not counted.")
        self._durations = _Histogram(REQUEST_BUCKETS)
        self._dead_letters = counter("ott_dead_letters", "Dead-lettered requests.", reason=REASONS)
        self._calls = counter("ott_upstream_calls", "Registration calls by HTTP status.", code=())
        self._call_durations = _Histogram(CALL_BUCKETS)
        self._tokens = counter("ott_token_fetches", "Token requests.", result=TOKEN_RESULTS)
        self._invalid_client = counter(
            "ott_token_invalid_client",
            "Token requests that Marketing Cloud refused for the client id or secret.",
        )
        self._reconnects = counter(
            "ott_broker_reconnects", "Connections opened after the first.", connection=CONNECTIONS
        )
        self._connected: set[str] = set()
        refused = counter(
            "ott_replies_refused", "Replies that did not go where reply_to says.", reason=REPLY_REFUSALS
        )
        failures = counter("ott_journey_failures", "Defects that stopped a request.")
        stale = counter(
            "ott_stale_deliveries",
            "Deliveries that were in flight on a lost connection; the broker redelivers them.",
        )
        returned = counter("ott_returned_deliveries", "Deliveries given back to the queue.")
        turned_down = counter(
            "ott_publishes_turned_down",
            "Messages that a queue of the worker's own did not take; each is tried again.",
            queue=OWN_QUEUES,
        )
        routed = counter(
            "ott_routed_requests", "Requests that this worker put into a partition.", partition=()
        )
        late = counter(
            "ott_late_requests_ignored",
            "Requests that a router published after it had lost its role; its successor has them too.",
        )
        self._closings = counter("ott_gate_closings", "Outages of Marketing Cloud that paused the worker.")
        self._closed_at: float | None = None
        self._closed_for = 0.0
        self.hear(
            consumer_connected=lambda: self._connect("consumer"),
            publisher_connected=lambda: self._connect("publisher"),
            reply_refused=lambda why: refused.labels(why).inc(),
            token_fetched=lambda account: self._tokens.labels("ok").inc(),
            stale_deliveries=stale.inc,
            returned=lambda count, why: returned.inc(count),
            publish_turned_down=lambda queue, why: turned_down.labels(queue.rpartition(".")[2]).inc(),
            routed=lambda partition: routed.labels(partition).inc(),
            late_request_ignored=lambda partition: late.inc(),
            processing_failed=lambda request_id, error: failures.inc(),
            gate_left=self.gate_opened,
        )

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        counter = Counter(name, text, tuple(labels), registry=self._counters)
        if labels:
            for values in product(*labels.values()):
                counter.labels(*values)
        return counter

    def settled(self, settlement: Settlement, seconds: float) -> None:
        _child(self._requests, settlement.status, settlement.platform or "none").inc()
        self._attempts.inc(settlement.attempts)
        self._durations.observe(seconds)
        if settlement.reason is not None:
            self._dead_letters.labels(settlement.reason).inc()

    def call_ended(self, status: int | None, seconds: float) -> None:
        _child(self._calls, _code(status)).inc()
        self._call_durations.observe(seconds)

    def token_refused(self, account: str | None, result: TokenResult, why: str) -> None:
        self._tokens.labels("failed" if result == "failed" else "refused").inc()
        self._invalid_client.inc(result == "invalid_client")

    def _connect(self, connection: str) -> None:
        self._reconnects.labels(connection).inc(connection in self._connected)
        self._connected.add(connection)

    def gate_closed(self, why: str) -> None:
        self._closings.inc()
        self._closed_at = time.monotonic()

    def gate_opened(self, seconds: float) -> None:
        self._closed_at = None
        self._closed_for += seconds

    def collect(self) -> Iterable[Metric]:
        """All of it, as Prometheus' objects."""
        yield from self._counters.collect()
        yield self._durations.metric(
            "ott_request_duration_seconds", "From a request's delivery to its acknowledgement."
        )
        yield self._call_durations.metric(
            "ott_upstream_call_duration_seconds", "Time of registration calls to Marketing Cloud."
        )
        lines = "Log lines that could not be written."
        yield CounterMetricFamily("ott_log_lines_dropped", lines, value=self._dropped_lines())
        paused = 0.0 if self._closed_at is None else time.monotonic() - self._closed_at
        yield CounterMetricFamily(
            "ott_gate_closed_seconds",
            "Time paused by outages, the present one included.",
            value=self._closed_for + paused,
        )


class Gauges(Collector):
    """What the worker is doing now."""

    def __init__(self, service: Service, phase: WorkerPhase) -> None:
        self._service = service
        self._phase = phase
        self._late: deque[float] = deque(maxlen=TICKS_KEPT)

    async def watch_loop(self) -> None:
        """Measure how late the event loop runs, until cancelled: everything in this process waits for it."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(TICK)
            self._late.append(max(0.0, time.monotonic() - began - TICK))

    def collect(self) -> Iterable[Metric]:
        """All of them, as they are now."""
        service = self._service
        has_token = service.marketing_cloud.accounts.has_token
        subscription, pace = service.intake.subscription, service.flow.pace
        is_active = subscription is not None and self._phase.is_active
        unconfirmed = service.publisher.waiting
        in_flight = sum(each.unsettled for each in service.subscriptions)
        lag = max(self._late, default=0.0)
        for name, text, value in (
            ("consumer_subscribed", "1 while the consumer is registered.", subscription is not None),
            ("consumer_active", "1 once deliveries come here; until then it may be standing by.", is_active),
            ("publisher_connected", "1 while replies can be published.", service.publisher.ready),
            (
                "publisher_unconfirmed_messages",
                "Messages that the broker has not confirmed yet.",
                unconfirmed,
            ),
            ("requests_in_flight", "Requests that were delivered and are not settled.", in_flight),
            ("lanes", "Resources with a request under way.", service.lanes),
            (
                "oldest_unsettled_request_age_seconds",
                "How long the oldest request in flight has been held.",
                service.oldest_age,
            ),
            ("gate_closed", "1 while an outage pauses the worker.", service.flow.is_pausing),
            (
                "pace_per_second",
                "Calls a second that a speed limit allows; -1 without one.",
                -1 if pace is None else pace,
            ),
            ("paused_by_order", "1 while an operator's pause stands.", service.orders.pause is not None),
            ("token_held", "1 while the default account has a good token.", has_token),
            ("event_loop_lag_seconds", "By how much the event loop came too late at most, lately.", lag),
        ):
            yield GaugeMetricFamily(f"ott_{name}", text, value=float(value))
        depths = "Messages that wait in a queue; left out where the broker has not told lately."
        known = [((queue,), messages) for queue, messages in service.depths.known().items()]
        yield _labelled("ott_queue_messages", depths, ["queue"], known)
        partitions = "1 for each partition that this worker has."
        taken = [((str(number),), 1) for number in service.partitions.taken]
        yield _labelled("ott_partition_active", partitions, ["partition"], taken)
        program = (version(), platform.python_version())
        labels = ["version", "python"]
        yield _labelled("ott_build_info", "Always 1; which program this is.", labels, [(program, 1)])


def _labelled(name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], int]]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for of_these, number in values:
        metric.add_metric(of_these, number)
    return metric


class _Histogram:
    """A histogram that costs two additions and a search for each observation."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def metric(self, name: str, text: str) -> Metric:
        total = 0
        buckets = []
        for bound, count in zip([*map(str, map(float, self._bounds)), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        metric = HistogramMetricFamily(name, text)
        metric.add_metric((), buckets, self._sum)
        return metric


@lru_cache(maxsize=1000)
def _child(counter: Counter, *values: str) -> Counter:
    """The counter of these labels. `labels` takes a lock and makes its key anew each time."""
    return counter.labels(*values)


@lru_cache(maxsize=1000)
def _code(status: int | None) -> str:
    if status is None:
        return "none"
    return str(status) if 100 <= status < 600 else "other"
