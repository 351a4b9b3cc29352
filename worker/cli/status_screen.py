"""The screen of `ott-worker status`, at any width."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from worker.broker.overview import Overview, Settled
from worker.cli import output
from worker.cli.table import Column, TextTable
from worker.contract.status import WorkerStatus
from worker.dead_letters.groups import LetterGroup
from worker.dead_letters.hints import hint

CAUSES_SHOWN = 5
WIDTH = 100  # columns of prose where there is no terminal
STATUSES = ("registered", "rejected", "failed", "superseded")


@dataclass(slots=True)
class Causes:
    """Why the dead letters died. `looked_at` of them, the oldest, were looked at."""

    groups: list[LetterGroup] = field(default_factory=list)
    looked_at: int = 0
    problem: str = ""


@dataclass(slots=True)
class Screen:
    """All that is shown. `rates` are those of the last minute and hour, None where there is no journal."""

    prefix: str
    broker: str
    at: datetime
    overview: Overview
    rates: tuple[Settled, Settled] | None
    causes: Causes

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        overview = self.overview
        rates = zip(("minute", "hour"), self.rates or (), strict=False)
        return {
            "prefix": self.prefix,
            "broker": self.broker,
            "at": f"{self.at:%Y-%m-%dT%H:%M:%S.%fZ}",
            "paused": None if overview.pause is None else overview.pause.model_dump(mode="json"),
            "workers": [worker.model_dump(mode="json", by_alias=True) for worker in overview.workers],
            "lost": [worker.model_dump(mode="json", by_alias=True) for worker in overview.lost],
            "queues": overview.queues,
            "rates": {
                name: {"seconds": round(rate.seconds), **{s: rate.counts.get(s, 0) for s in STATUSES}}
                for name, rate in rates
            },
            "deadLetters": [group.summary() | {"hint": hint(group.reason)} for group in self.causes.groups],
            "problems": overview.problems,
        }


def print_screen(screen: Screen, width: int | None) -> None:
    """Print it, `width` columns wide, or as wide as it is."""
    overview = screen.overview
    output.line(f"{screen.prefix} · {screen.broker} · {screen.at:%Y-%m-%d %H:%M:%S} UTC")
    for line in _headline(screen):
        _prose(line, width)
    has_partitions = any(each.partitions for each in overview.workers)
    columns = tuple(column for column in WORKERS if has_partitions or column is not PARTITIONS)
    _table(columns, [_worker(each, screen.at) for each in overview.workers], width)
    for line in _whys(overview, screen.at):
        _prose(line, width, indent="  ")
    _table(QUEUES, list(_queues(screen)), width)
    if screen.rates is not None:
        _table(RATES, list(_rates(*screen.rates)), width)
    _causes(screen, width)
    if overview.problems:
        output.line("")
        for problem in overview.problems:
            _prose(f"Not shown: {problem}", width)


def _headline(screen: Screen) -> Iterator[str]:
    """What an operator must know first."""
    overview = screen.overview
    active = [worker for worker in overview.workers if worker.state == "active"]
    if overview.pause is not None:
        pause = overview.pause
        yield f"PAUSED by {pause.by} {_ago(pause.since, screen.at)}: {pause.why or 'no reason given'}"
        yield "Go on with: ott-worker resume"
    elif not overview.workers:
        yield "NO WORKER RUNS: start one with ott-worker run."
    elif all(worker.gate.state == "closed" for worker in active) and active:
        yield "OUTAGE: Marketing Cloud takes no calls. Requests wait; all resumes by itself."
    elif not active:
        yield "Nothing to do so far: one of these becomes active with the next request."


def _whys(overview: Overview, now: datetime) -> Iterator[str]:
    for worker in overview.workers:
        if worker.gate.why and worker.gate.state != "open":
            yield f"{worker.place}: gate {worker.gate.state}: {worker.gate.why}"
    for worker in overview.lost:
        yield f"{worker.place}: last heard {_ago(worker.at, now)}: killed, or cut off from RabbitMQ"


def _worker(worker: WorkerStatus, now: datetime) -> dict[str, Any]:
    since = worker.gate.since
    gate = worker.gate.state if since is None else f"{worker.gate.state} {_span(since, now)}"
    return {
        "worker": worker.place,
        "state": "paused" if worker.paused is not None and worker.state != "draining" else worker.state,
        "gate": gate,
        "partitions": _ranges(worker.partitions),
        "inFlight": f"{worker.in_flight:,}",
        "rate": _rate(worker.rate_per_second),
        "reconnects": str(worker.reconnects),
        "version": worker.version,
    }


def _ranges(numbers: list[int]) -> str:
    """`1-3,7`, or `-`."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _queues(screen: Screen) -> Iterator[dict[str, Any]]:
    for name, messages in screen.overview.queues.items():
        remark = ""
        rate = sum(worker.rate_per_second for worker in screen.overview.workers)
        if name == "requests" and messages and rate:
            remark = f"about {_duration(messages / rate)} at this rate"
        yield {"queue": name, "messages": f"{messages:,}", "remark": remark}


def _rates(minute: Settled, hour: Settled) -> Iterator[dict[str, Any]]:
    titles = ("last minute", "last hour" if hour.seconds >= 3600 else f"last {_duration(hour.seconds)}")
    for title, rate in zip(titles, (minute, hour), strict=True):
        counts = {status: f"{rate.counts.get(status, 0):,}" for status in STATUSES}
        yield {"title": title, **counts, "perSecond": _rate(rate.per_second)}


def _causes(screen: Screen, width: int | None) -> None:
    groups, total = screen.causes.groups, screen.overview.queues.get("dead", 0)
    if not groups:
        return
    output.line("")
    looked_at = screen.causes.looked_at
    some = f" (of the oldest {looked_at:,})" if looked_at < total else ""
    output.line(f"DEAD LETTERS by cause{some}")
    for group in groups[:CAUSES_SHOWN]:
        cause = f"{group.count:>7,}  {group.reason}: {group.error or '-'}"
        room = (width or WIDTH) - 1
        output.line(cause if len(cause) <= room else f"{cause[: room - 1]}…")
        _prose(f"→ {hint(group.reason)}", width, indent=" " * 9)
    if len(groups) > CAUSES_SHOWN:
        output.line(f"{'':>9}{len(groups) - CAUSES_SHOWN} more: ott-worker dead-letters list --by error")


def _table(columns: tuple[Column, ...], rows: list[dict[str, Any]], width: int | None) -> None:
    if not rows:
        return
    output.line("")
    with TextTable(columns) as table:
        for row in rows:
            table.add(row)
        table.print(width)


def _prose(text: str, width: int | None, indent: str = "") -> None:
    for line in textwrap.wrap(text, (width or WIDTH) - 1, initial_indent=indent, subsequent_indent=indent):
        output.line(line)


def _rate(per_second: float) -> str:
    return f"{per_second:,.1f}" if per_second >= 1 or not per_second else f"{per_second:.2g}"


def _ago(since: datetime, now: datetime) -> str:
    return f"{_span(since, now)} ago ({since.astimezone(UTC):%H:%M} UTC)"


def _span(since: datetime, now: datetime) -> str:
    return _duration(max(0.0, (now - since).total_seconds()))


def _duration(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _cell(name: str) -> Any:
    return lambda row: row[name]


PARTITIONS = Column("PARTITIONS", _cell("partitions"), rank=3, shrink_to=10)
WORKERS = (
    Column("WORKER", _cell("worker"), rank=1, shrink_to=16, middle=True),
    Column("STATE", _cell("state")),
    Column("GATE", _cell("gate")),
    PARTITIONS,
    Column("IN FLIGHT", _cell("inFlight")),
    Column("PER S", _cell("rate")),
    Column("RECONNECTS", _cell("reconnects"), rank=5),
    Column("VERSION", _cell("version"), rank=4),
)
QUEUES = (
    Column("QUEUE", _cell("queue")),
    Column("WAITING", _cell("messages")),
    Column("", _cell("remark"), rank=1),
)
RATES = (
    Column("SETTLED", _cell("title")),
    *(Column(status.upper(), _cell(status)) for status in STATUSES),
    Column("PER S", _cell("perSecond"), rank=1),
)
