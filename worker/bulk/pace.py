"""How a job stands, in numbers: what is done, how fast, how long it will take."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from worker.bulk.results import INVALID
from worker.bulk.tally import Tally
from worker.tables.source import CHUNK

RATE_OVER: Final = 10.0  # seconds
SOON: Final = 0.1  # seconds in which no rate can be told


@dataclass(frozen=True, slots=True)
class Standing:
    """A job at one moment. `total` and `seconds_left` are None while nobody can tell; `counts` are rows by
    what became of them, in the order in which that happens."""

    done: int
    total: float | None
    rows_per_second: float
    seconds_left: float | None
    counts: dict[str, int]


class Pace:
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

    def standing(self) -> Standing:
        """How the job stands now; the rate is that of the last seconds in which this was asked."""
        now, moved = time.monotonic(), self._moved()
        self._marks.append((now, moved))
        while now - self._marks[0][0] > RATE_OVER:
            self._marks.popleft()
        then, before = self._marks[0]
        rate = (moved - before) / (now - then) if now - then > SOON else 0.0
        done, total = moved + self._tally.skipped, self._total()
        left = max(0.0, total - done) / rate if total is not None and rate else None
        return Standing(done, total, rate, left, self._counts())

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
