"""The screen of `ott-worker status`, at any width."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from worker.broker.last_hour import Settled
from worker.broker.overview import Overview
from worker.broker.situation import Condition, State
from worker.cli import output
from worker.contract.dead_letter import brief
from worker.contract.status import WorkerStatus
from worker.contract.timestamps import how_long, span
from worker.contract.words import STATUSES
from worker.dead_letters.groups import Cause, advice

CAUSES_SHOWN = 5
WIDTH = 100  # columns of prose where there is no terminal
WIDE = 100  # columns from which on all of the workers' columns are shown


@dataclass(slots=True)
class Causes:
    """Why the dead letters died. `looked_at` of them, the oldest, were looked at."""

    groups: list[Cause] = field(default_factory=list)
    looked_at: int = 0
    problem: str = ""

    def largest(self) -> list[tuple[int, str, str]]:
        """As `situation.judge` takes them."""
        return [(group.count, group.reason, advice(group.reason)) for group in self.groups]


@dataclass(slots=True)
class Screen:
    """All that is shown. `rates` are those of the last minute and hour, None where there is no journal."""

    prefix: str
    broker: str
    at: datetime
    situation: Sequence[Condition]
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
            "situation": [condition.document() for condition in self.situation],
            "paused": None if overview.pause is None else overview.pause.model_dump(mode="json"),
            "workers": [worker.model_dump(mode="json", by_alias=True) for worker in overview.workers],
            "lost": [worker.model_dump(mode="json", by_alias=True) for worker in overview.lost],
            "queues": overview.queues,
            "rates": {
                name: {"seconds": round(rate.seconds), **{s: rate.counts.get(s, 0) for s in STATUSES}}
                for name, rate in rates
            },
            "deadLetters": [group.summary() | {"hint": advice(group.reason)} for group in self.causes.groups],
            "problems": overview.problems,
        }


def print_screen(screen: Screen, width: int | None) -> None:
    """Print it, `width` columns wide, or as wide as it is."""
    overview = screen.overview
    output.line(f"{screen.prefix} · {screen.broker} · {screen.at:%Y-%m-%d %H:%M:%S} UTC")
    for number, condition in enumerate(screen.situation):
        if number and condition.state in (State.DEAD_LETTERS, State.INCOMPLETE):
            continue  # told below
        _prose(condition.line(screen.at), width)
        _prose(condition.advice, width, indent="" if number == 0 else "  ")
    _workers(overview.workers, screen.at, width)
    for worker in overview.lost:
        ago = f"{how_long(worker.at, screen.at)} ago ({worker.at:%H:%M} UTC)"
        _prose(f"{worker.place}: last heard {ago}: killed, or cut off from RabbitMQ", width, indent="  ")
    output.table(("QUEUE", "WAITING", ""), list(_queues(overview)), width)
    if screen.rates is not None:
        titles = ("SETTLED", *(status.upper() for status in STATUSES), "PER S")
        output.table(titles, list(_rates(*screen.rates)), width)
    _causes(screen, width)
    if overview.problems:
        output.line("")
        for problem in overview.problems:
            _prose(f"Not shown: {problem}", width)


def _workers(workers: Sequence[WorkerStatus], now: datetime, width: int | None) -> None:
    has_partitions = any(each.partitions for each in workers)
    has_pace = any(each.pace is not None for each in workers)
    is_wide = width is None or width >= WIDE
    columns: dict[str, Callable[[WorkerStatus], str] | None] = {
        "WORKER": lambda each: each.place,
        "STATE": lambda each: "paused" if each.paused and each.state != "draining" else each.state,
        "GATE": lambda each: f"{each.gate.state} {_for(each.gate.since, now)}".rstrip(),
        "PARTITIONS": (lambda each: _ranges(each.partitions)) if has_partitions else None,
        "IN FLIGHT": lambda each: f"{each.in_flight:,}",
        "PER S": lambda each: _rate(each.rate_per_second),
        "PACE": (lambda each: "-" if each.pace is None else _rate(each.pace)) if has_pace else None,
        "RECONNECTS": (lambda each: str(each.reconnects)) if is_wide else None,
        "VERSION": (lambda each: each.version) if is_wide or not has_partitions else None,
    }
    shown = {title: cell for title, cell in columns.items() if cell is not None}
    output.table(tuple(shown), [tuple(cell(each) for cell in shown.values()) for each in workers], width)


def _for(since: datetime | None, now: datetime) -> str:
    return "" if since is None else how_long(since, now)


def _ranges(numbers: list[int]) -> str:
    """`1-3,7`, or `-`."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _queues(overview: Overview) -> Iterator[tuple[str, str, str]]:
    for name, messages in overview.queues.items():
        remark = ""
        rate = sum(worker.rate_per_second for worker in overview.workers)
        if name == "requests" and messages and rate:
            remark = f"about {span(messages / rate)} at this rate"
        yield name, f"{messages:,}", remark


def _rates(minute: Settled, hour: Settled) -> Iterator[tuple[str, ...]]:
    titles = ("last minute", "last hour" if hour.seconds >= 3600 else f"last {span(hour.seconds)}")
    for title, rate in zip(titles, (minute, hour), strict=True):
        yield title, *(f"{rate.counts.get(status, 0):,}" for status in STATUSES), _rate(rate.per_second)


def _causes(screen: Screen, width: int | None) -> None:
    groups, total = screen.causes.groups, screen.overview.queues.get("dead", 0)
    if not groups:
        return
    output.line("")
    looked_at = screen.causes.looked_at
    some = f" (of the oldest {looked_at:,})" if looked_at < total else ""
    output.line(f"DEAD LETTERS by cause{some}")
    for group in groups[:CAUSES_SHOWN]:
        cause = f"{group.count:>7,}  {group.reason}: {brief(group.error) or '-'}"
        room = (width or WIDTH) - 1
        output.line(cause if len(cause) <= room else f"{cause[: room - 1]}…")
        _prose(f"→ {advice(group.reason)}", width, indent=" " * 9)
    if len(groups) > CAUSES_SHOWN:
        output.line(f"{'':>9}{len(groups) - CAUSES_SHOWN} more: ott-worker dead-letters list --by error")


def _prose(text: str, width: int | None, indent: str = "") -> None:
    for line in textwrap.wrap(text, (width or WIDTH) - 1, initial_indent=indent, subsequent_indent=indent):
        output.line(line)


def _rate(per_second: float) -> str:
    return f"{per_second:,.1f}" if per_second >= 1 or not per_second else f"{per_second:.2g}"
