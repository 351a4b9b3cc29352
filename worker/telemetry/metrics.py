"""Prometheus metrics (contract §7: `/metrics`).

Events are counted in plain numbers, because some come with each request; Prometheus' own objects are made
when it asks for them. Every label has a bounded set of values.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from worker.contract.platforms import PLATFORMS
from worker.contract.settlement import Settlement
from worker.contract.words import NOT_ALLOWED, REASONS, STATUSES, UNROUTABLE
from worker.events import EventListener, TokenResult

CALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)  # seconds
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)  # seconds

REPLY_REFUSALS = (UNROUTABLE, NOT_ALLOWED)
TOKEN_RESULTS: tuple[TokenResult, ...] = ("ok", "refused", "failed")
CONNECTIONS = ("consumer", "publisher")
OWN_QUEUES = ("replies", "dead", "journal")


class Metrics(EventListener, Collector):
    """Counts events. Where the values of a label are known, their counters start at zero before the first
    event, so that the first event shows as an increase."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str | None]] = Counter()
        self._attempts = 0
        self._durations = _Histogram(REQUEST_BUCKETS)
        self._dead_letters = Counter[str](dict.fromkeys(REASONS, 0))
        self._replies_refused = Counter[str](dict.fromkeys(REPLY_REFUSALS, 0))
        self._calls: Counter[int | None] = Counter()
        self._call_durations = _Histogram(CALL_BUCKETS)
        self._invalid_client = 0
        self._tokens = Counter[TokenResult](dict.fromkeys(TOKEN_RESULTS, 0))
        self._connected = Counter(dict.fromkeys(CONNECTIONS, 0))
        self._stale = 0
        self._returned = 0
        self._turned_down = Counter(dict.fromkeys(OWN_QUEUES, 0))
        self._routed: Counter[str] = Counter()
        self._ignored = 0
        self._journey_failures = 0
        self._closings = 0
        self._closed_at: float | None = None
        self._closed_for = 0.0

    def settled(self, settlement: Settlement, seconds: float) -> None:
        self._requests[settlement.status, settlement.platform] += 1
        self._attempts += settlement.attempts
        self._durations.observe(seconds)
        if settlement.reason is not None:
            self._dead_letters[settlement.reason] += 1

    def call_ended(self, status: int | None, seconds: float) -> None:
        self._calls[status] += 1
        self._call_durations.observe(seconds)

    def reply_refused(self, why: str) -> None:
        self._replies_refused[why] += 1

    def token_fetched(self, result: TokenResult, why: str) -> None:
        self._tokens[result] += 1
        self._invalid_client += "invalid_client" in why

    def consumer_connected(self) -> None:
        self._connected["consumer"] += 1

    def publisher_connected(self) -> None:
        self._connected["publisher"] += 1

    def stale_deliveries(self, count: int) -> None:
        self._stale += count

    def returned(self, count: int, why: str) -> None:
        self._returned += count

    def publish_turned_down(self, queue: str, why: str) -> None:
        self._turned_down[queue.rpartition(".")[2]] += 1

    def routed(self, partition: int) -> None:
        self._routed[str(partition)] += 1

    def late_request_ignored(self, partition: int) -> None:
        self._ignored += 1

    def processing_failed(self, request_id: str, error: str) -> None:
        self._journey_failures += 1

    def gate_closed(self, why: str) -> None:
        self._closings += 1
        self._closed_at = time.monotonic()

    def gate_opened(self, seconds: float) -> None:
        self._closed_at = None
        self._closed_for += seconds

    def gate_left(self, seconds: float) -> None:
        self.gate_opened(seconds)

    def collect(self) -> Iterable[Metric]:
        """All of it, as Prometheus' objects."""
        yield from self._of_requests()
        yield from self._of_marketing_cloud()
        yield from self._of_the_broker()

    def _of_requests(self) -> Iterable[Metric]:
        settled: dict[tuple[str, str], int] = {
            (status, platform): 0 for status in STATUSES for platform in (*PLATFORMS, "none")
        }
        settled |= {(status, platform or "none"): n for (status, platform), n in self._requests.items()}
        yield _counter("ott_requests", "Settled requests by outcome.", settled, ("status", "platform"))
        yield _counter(
            "ott_attempts", "Calls spent on settled requests, outages not counted.", self._attempts
        )
        yield self._durations.metric(
            "ott_request_duration_seconds", "From a request's delivery to its acknowledgement."
        )
        yield _counter("ott_dead_letters", "Dead-lettered requests.", self._dead_letters, ("reason",))
        refused = "Replies that did not go where reply_to says."
        yield _counter("ott_replies_refused", refused, self._replies_refused, ("reason",))
        yield _counter("ott_journey_failures", "Defects that stopped a request.", self._journey_failures)

    def _of_marketing_cloud(self) -> Iterable[Metric]:
        calls: Counter[str] = Counter()
        for status, number in self._calls.items():
            calls[_code(status)] += number
        yield _counter("ott_upstream_calls", "Registration calls by HTTP status.", calls, ("code",))
        yield self._call_durations.metric(
            "ott_upstream_call_duration_seconds", "Time of registration calls to Marketing Cloud."
        )
        yield _counter("ott_token_fetches", "Token requests.", self._tokens, ("result",))
        yield _counter(
            "ott_token_invalid_client",
            "Token requests that Marketing Cloud refused for the client id or secret.",
            self._invalid_client,
        )
        yield _counter(
            "ott_gate_closings", "Outages of Marketing Cloud that paused the worker.", self._closings
        )
        paused = 0.0 if self._closed_at is None else time.monotonic() - self._closed_at
        yield _counter(
            "ott_gate_closed_seconds",
            "Time paused by outages, the present one included.",
            self._closed_for + paused,
        )

    def _of_the_broker(self) -> Iterable[Metric]:
        again = {name: max(0, number - 1) for name, number in self._connected.items()}
        yield _counter("ott_broker_reconnects", "Connections opened after the first.", again, ("connection",))
        stale = "Deliveries that were in flight on a lost connection; the broker redelivers them."
        yield _counter("ott_stale_deliveries", stale, self._stale)
        yield _counter("ott_returned_deliveries", "Deliveries given back to the queue.", self._returned)
        turned_down = "Messages that a queue of the worker's own did not take; each is tried again."
        yield _counter("ott_publishes_turned_down", turned_down, self._turned_down, ("queue",))
        routed = "Requests that this worker put into a partition."
        yield _counter("ott_routed_requests", routed, self._routed, ("partition",))
        late = "Requests that a router published after it had lost its role; its successor has them too."
        yield _counter("ott_late_requests_ignored", late, self._ignored)


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


def _counter(
    name: str,
    text: str,
    value: float | dict[str, int] | dict[tuple[str, str], int] | Counter[TokenResult],
    labels: Sequence[str] = (),
) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    if isinstance(value, dict):
        for key, number in value.items():
            metric.add_metric(key if isinstance(key, tuple) else (key,), number)
    else:
        metric.add_metric((), value)
    return metric


def _code(status: int | None) -> str:
    if status is None:
        return "none"
    return str(status) if 100 <= status < 600 else "other"
