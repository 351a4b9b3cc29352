"""Prometheus metrics (contract §7: `/metrics`). Every label has a bounded set of values."""

import platform
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.contract.platforms import PLATFORMS
from worker.contract.settlement import Settlement
from worker.contract.words import NOT_ALLOWED, REASONS, STATUSES, UNROUTABLE
from worker.events import EventListener, TokenResult
from worker.release import version
from worker.service import Service
from worker.telemetry.status import WorkerPhase, gets_deliveries

CALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)  # seconds
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)  # seconds

REPLY_REFUSALS = (UNROUTABLE, NOT_ALLOWED)
TOKEN_RESULTS = ("ok", "refused", "failed")
CONNECTIONS = ("consumer", "publisher")
OWN_QUEUES = ("replies", "dead", "journal")


class Metrics(EventListener):
    """Counts events, in `registry`. If the values of a label are known, their counters start at zero, so that
    the first event shows as an increase."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        for of_process in (ProcessCollector, PlatformCollector, GCCollector):
            of_process(registry=self.registry)
        counter = self._counter
        histogram = partial(Histogram, namespace="ott", registry=self.registry)
        self._requests = counter(
            "requests", "Settled requests by outcome.", status=STATUSES, platform=(*PLATFORMS, "none")
        )
        self._attempts = counter("attempts", "Calls for settled requests, without those during outages.")
        self._durations = histogram(
            "request_duration_seconds",
            "From a request's delivery to its acknowledgement.",
            buckets=REQUEST_BUCKETS,
        )
        self._dead_letters = counter("dead_letters", "Dead-lettered requests.", reason=REASONS)
        self._calls = counter("upstream_calls", "Registration calls by HTTP status.", code=())
        self._call_durations = histogram(
            "upstream_call_duration_seconds",
            "Time of registration calls to Marketing Cloud.",
            buckets=CALL_BUCKETS,
        )
        self._tokens = counter("token_fetches", "Token requests.", result=TOKEN_RESULTS)
        self._invalid_client = counter(
            "token_invalid_client", "Token requests that were refused for the client id or secret."
        )
        self._reconnects = counter(
            "broker_reconnects", "Connections opened after the first.", connection=CONNECTIONS
        )
        self._connected: set[str] = set()
        self.lines_dropped = counter("log_lines_dropped", "Log lines that could not be written.")
        refused = counter(
            "replies_refused", "Replies that did not follow their reply_to.", reason=REPLY_REFUSALS
        )
        failures = counter("journey_failures", "Defects that stopped a request.")
        stale = counter("stale_deliveries", "In flight on a lost connection; the broker redelivers them.")
        returned = counter("returned_deliveries", "Deliveries that the worker requeued.")
        turned_down = counter(
            "publishes_turned_down",
            "Messages that a queue of the worker rejected; each is published again.",
            queue=OWN_QUEUES,
        )
        routed = counter("routed_requests", "Requests that this worker routed to a partition.", partition=())
        late = counter(
            "late_requests_ignored",
            "Requests of a router that was already replaced; its successor has them too.",
        )
        closings = counter("gate_closings", "Outages of Marketing Cloud that paused the worker.")
        self.listen(
            consumer_connected=lambda: self._connect("consumer"),
            publisher_connected=lambda: self._connect("publisher"),
            reply_refused=lambda why: refused.labels(why).inc(),
            token_fetched=lambda account: self._tokens.labels("ok").inc(),
            subscription_ended=lambda count, why: stale.inc(count),
            returned=lambda count, why: returned.inc(count),
            publish_turned_down=lambda queue, why: turned_down.labels(queue.rpartition(".")[2]).inc(),
            routed=lambda partition: routed.labels(partition).inc(),
            late_request_ignored=lambda partition: late.inc(),
            processing_failed=lambda request_id, error: failures.inc(),
            gate_closed=lambda why: closings.inc(),
        )

    def _counter(self, name: str, text: str, **labels: Iterable[str]) -> Counter:
        counter = Counter(name, text, tuple(labels), namespace="ott", registry=self.registry)
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


class Gauges(Collector):
    """The worker's present state."""

    def __init__(self, service: Service, phase: WorkerPhase) -> None:
        self._service = service
        self._phase = phase

    def collect(self) -> Iterable[Metric]:
        """The present values of all gauges."""
        service, flow = self._service, self._service.flow
        subscription, publisher = service.intake.subscription, service.publisher
        is_active = subscription is not None and gets_deliveries(service, self._phase)
        in_flight = sum(each.unsettled for each in service.subscriptions)
        pace = -1 if flow.pace is None else flow.pace
        has_token = service.marketing_cloud.accounts.default.has_token
        for name, text, value in (
            ("consumer_subscribed", "1 while the consumer is registered.", subscription is not None),
            ("consumer_active", "1 once deliveries arrive; until then it may be a standby.", is_active),
            ("publisher_connected", "1 while replies can be published.", publisher.ready),
            ("publisher_unconfirmed_messages", "Not confirmed by the broker yet.", publisher.waiting),
            ("requests_in_flight", "Requests that are delivered and not settled.", in_flight),
            ("lanes", "Resources with a request in progress.", service.lanes),
            ("oldest_unsettled_request_age_seconds", "Time since its delivery.", service.oldest_age),
            ("gate_closed", "1 while an outage pauses the worker.", flow.is_pausing),
            ("pace_per_second", "Calls a second that a speed limit allows; -1 without one.", pace),
            ("paused_by_order", "1 while an operator's pause is in force.", service.orders.pause is not None),
            ("token_held", "1 while the default account has a valid token.", has_token),
        ):
            yield GaugeMetricFamily(f"ott_{name}", text, value=float(value))
        yield CounterMetricFamily(
            "ott_gate_closed_seconds",
            "Time paused by outages, including the present one.",
            value=self._phase.paused_for + flow.paused_for,
        )
        depths = "Ready messages of a queue; left out if not known."
        known = [((queue,), messages) for queue, messages in service.watch.depths.items()]
        yield _labelled("ott_queue_messages", depths, ["queue"], known)
        partitions = "1 for each partition whose active consumer this worker is."
        taken = [((str(number),), 1) for number in service.partitions.taken]
        yield _labelled("ott_partition_active", partitions, ["partition"], taken)
        program = (version(), platform.python_version())
        labels = ["version", "python"]
        yield _labelled("ott_build_info", "Always 1; the program's version.", labels, [(program, 1)])


def _labelled(name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], int]]) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for of_these, number in values:
        metric.add_metric(of_these, number)
    return metric


@lru_cache(maxsize=1000)
def _child(counter: Counter, *values: str) -> Counter:
    """The counter of these labels, cached: `labels` takes a lock and builds its key each time."""
    return counter.labels(*values)


@lru_cache(maxsize=1000)
def _code(status: int | None) -> str:
    if status is None:
        return "none"
    return str(status) if 100 <= status < 600 else "other"
