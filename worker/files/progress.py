"""Progress of a job, in constant memory: rows by outcome, rate, time left, and what delays it."""

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from worker.broker.situation import obstacle
from worker.contract.status import WorkerStatus
from worker.events import EventListener
from worker.files.results import INVALID, RowResult
from worker.files.source import CHUNK

FIRST_ROWS: Final = 5
MOST_ERRORS: Final = 200  # different texts that are counted apart
OTHER: Final = "(other errors)"
RATE_OVER: Final = 10.0  # seconds
SOON: Final = 0.1  # seconds in which no rate can be told


@dataclass(slots=True)
class ErrorGroup:
    """Rows with one error, and the places of the first ones. A row with several errors is in several
    groups."""

    status: str
    error: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.first) < FIRST_ROWS:
            self.first.append(place)


@dataclass(slots=True)
class Tally:
    """Rows by what became of them. `published` are those that the broker has confirmed. `overtaken` are those
    that something newer outside the job has superseded."""

    read: int = 0
    read_bytes: int = 0
    total: int | None = None
    skipped: int = 0
    published: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], ErrorGroup] = field(default_factory=dict)
    overtaken: ErrorGroup = field(default_factory=lambda: ErrorGroup("superseded", ""))

    @property
    def answered(self) -> int:
        return self.statuses.total()

    @property
    def registered(self) -> int:
        return self.statuses["registered"]

    @property
    def all_well(self) -> bool:
        """Whether nothing is left to do: what something newer has superseded needs nothing."""
        return self.answered == self.registered + self.statuses["superseded"]

    def add(self, result: RowResult, place: str) -> None:
        """Count an answer."""
        self.statuses[result.status] += 1
        if result.status != "registered":
            for error in result.errors or ("(no message)",):
                self._group(result.status, error).add(place)

    def errors(self) -> list[ErrorGroup]:
        """The groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: -group.count)

    def _group(self, status: str, error: str) -> ErrorGroup:
        if (status, error) not in self.groups and len(self.groups) >= MOST_ERRORS:
            error = OTHER
        return self.groups.setdefault((status, error), ErrorGroup(status, error))


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """A job at one moment. `total` and `seconds_left` are None while they are unknown; `counts` are rows by
    what became of them, in the order in which that happens."""

    done: int
    total: float | None
    rows_per_second: float
    seconds_left: float | None
    counts: dict[str, int]


class ProgressMeter:
    """Follows one tally. `size` is that of all inputs in bytes, None where it is unknown. Rows are done when
    they are answered, or without `wait` when they are published."""

    def __init__(self, tally: Tally, size: int | None, *, wait: bool = True) -> None:
        self._tally = tally
        self._size = size
        self._wait = wait
        self._started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._started, 0)])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def snapshot(self) -> ProgressSnapshot:
        """How the job stands now; the rate is that of the last seconds in which this was asked."""
        now, moved = time.monotonic(), self._moved()
        self._marks.append((now, moved))
        while now - self._marks[0][0] > RATE_OVER:
            self._marks.popleft()
        then, before = self._marks[0]
        rate = (moved - before) / (now - then) if now - then > SOON else 0.0
        done, total = moved + self._tally.skipped, self._total()
        left = max(0.0, total - done) / rate if total is not None and rate else None
        return ProgressSnapshot(done, total, rate, left, self._counts())

    def _counts(self) -> dict[str, int]:
        tally = self._tally
        counts = {"read": tally.read, "published": tally.published}
        if tally.skipped:
            counts["skipped"] = tally.skipped
        if self._wait:
            counts["registered"] = tally.registered
        counts["rejected"] = tally.statuses["rejected"]
        if self._wait:
            counts["failed"] = tally.statuses["failed"]
        rarer = {name: tally.statuses[name] for name in (INVALID, "superseded")}
        return counts | {name: number for name, number in rarer.items() if number}

    def _moved(self) -> int:
        """Rows that this run has dealt with."""
        return self._tally.answered if self._wait else self._tally.published + self._tally.answered

    def _total(self) -> float | None:
        """All rows; while the input is being read, as many as its size lets expect."""
        if self._tally.total is not None:
            return self._tally.total
        if self._size is None or self._tally.read_bytes < 4 * CHUNK:
            return None
        return self._tally.read * self._size / self._tally.read_bytes


class Notices(EventListener):
    """Hears what the broker modules state. `current` is empty while all goes well."""

    def __init__(self) -> None:
        self._broker = ""
        self._workers = ""
        self.job = ""

    @property
    def current(self) -> str:
        # A paused worker consumes nothing: that no worker takes requests is true then, and not the cause.
        return self._broker or self._workers or self.job

    def workers_told(self, workers: Iterable[WorkerStatus]) -> None:
        """What the workers say of themselves."""
        self._workers = obstacle(workers)

    def subscribed(self, prefetch: int) -> None:
        self._broker = ""

    def broker_unreachable(self, why: str) -> None:
        self._broker = _trying(why)


def _trying(why: str) -> str:
    return f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."
