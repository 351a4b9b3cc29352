"""The plan of a job, and its progress: rows outstanding, rows by outcome, and delays."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiolimiter import AsyncLimiter

from worker.events import EventListener
from worker.files.job_database import SETTLED, RowResult
from worker.files.rows import Group, Reading, Row

MOST_ERRORS: Final = 200  # different texts that are counted separately
OTHER: Final = "(other errors)"
MOST_BYTES: Final = 16 * 1024 * 1024  # of outstanding rows
HOLD: Final = 0.8  # seconds for which a job's rows hold up others
LEAST_HOLD: Final = 0.2  # the same while calls are paused repeatedly, as by Retry-After
FORGIVEN: Final = 0.1  # seconds of a pause that are forgotten per second
FEWEST: Final = 2  # rows
FIRST: Final = 16  # rows before the first answer
MOST: Final = 10_000  # rows
RATE_OVER: Final = 1.0  # seconds over which the rate is measured
BURSTS: Final = 3  # the rate of answers in bursts is measured over so many bursts


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job does. At most `outstanding` rows wait for their replies; by default Pacer decides. `rate` is
    the most rows per second. Without `wait` it follows no replies.

    `results` is the results file. With `resumed`, an earlier run continues: rows keep their request ids, and
    replies that arrived after that run are received."""

    reading: Reading
    account_id: str | None = None
    outstanding: int | None = None
    rate: float | None = None
    wait: bool = True
    send_damaged: bool = False
    results: Path | None = None
    resumed: bool = False


@dataclass(slots=True)
class Tally:
    """Counts of rows. `total` is None while it is unknown, and `published` counts those that the broker has
    confirmed. A row with several errors counts for each. `overtaken` are superseded by requests of other
    senders."""

    read: int = 0
    total: int | None = None
    skipped: int = 0
    published: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    overtaken: Group = field(default_factory=Group)

    @property
    def answered(self) -> int:
        return self.statuses.total()

    @property
    def all_well(self) -> bool:
        """Whether every row is registered or superseded."""
        return self.answered == sum(self.statuses[status] for status in SETTLED)

    def add(self, result: RowResult, place: str) -> None:
        """Count an answer."""
        self.statuses[result.status] += 1
        if result.status != "registered":
            for error in result.errors or ("(no message)",):
                is_known = (result.status, error) in self.groups or len(self.groups) < MOST_ERRORS
                key = (result.status, error if is_known else OTHER)
                self.groups.setdefault(key, Group()).add(place)

    def errors(self) -> list[tuple[str, str, Group]]:
        """Status and error of each group, the largest first."""
        groups = sorted(self.groups.items(), key=lambda item: -item[1].count)
        return [(status, error, group) for (status, error), group in groups]


class Notices(EventListener):
    """Why no replies arrive: an error of the connection, the workers' own state, or the job's. Empty if there
    is no delay."""

    def __init__(self) -> None:
        self.broker = self.workers = self.job = ""

    @property
    def current(self) -> str:
        """The notice to show."""
        # A paused worker consumes nothing. Then `job` ("No worker consumes …") is true, but not the cause.
        return self.broker or self.workers or self.job

    def subscribed(self, queue: str, prefetch: int) -> None:
        self.broker = ""

    def broker_unreachable(self, why: str) -> None:
        self.broker = f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."


class Pacer:
    """Decides how many rows may be outstanding: no more than are settled in two seconds (contract §12). No
    I/O and no clock.

    The limit is the number of answers in HOLD seconds plus the shortest time of an answer, in which none of
    the job's own rows was ahead. So others wait for at most HOLD seconds, and a slow upstream that handles
    many concurrent calls is still used fully."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._answers: deque[float] = deque()
        self._shortest = 0.0  # seconds from a row to its answer
        self._paused = 0.0  # recent seconds without an answer while rows were outstanding
        self._last, self._were_out = 0.0, False

    def answered(self, now: float, seconds: float, out: int) -> None:
        """A row was answered after so many seconds; so many others are outstanding."""
        self._answers.append(now)
        gap = now - self._last
        self._paused = max(0.0, self._paused - FORGIVEN * gap)
        if self._were_out:
            self._paused = max(self._paused, min(HOLD, gap - self._shortest))
        self._last, self._were_out = now, out > 0
        # With few rows outstanding this is the upstream's present time, even if it was shorter before.
        if out < FEWEST or not self._shortest or seconds < self._shortest:
            self._shortest = seconds

    def limit(self, now: float) -> int:
        """How many rows may be outstanding."""
        if self._fixed is not None:
            return self._fixed
        if not self._shortest:
            return FIRST
        over = max(RATE_OVER, BURSTS * self._shortest)
        while self._answers and now - self._answers[0] > over:
            self._answers.popleft()
        rate = len(self._answers) / over
        hold = max(LEAST_HOLD, HOLD - self._paused)
        return max(FEWEST, min(MOST, int(rate * (hold + self._shortest))))


class Outstanding:
    """The rows that are sent and not answered, by request id, and when each was sent. Only one task may wait
    at a time."""

    def __init__(self, limit: int | None = None, rate: float | None = None) -> None:
        self._pacer = Pacer(limit)
        self._limiter = AsyncLimiter(1, 1 / rate) if rate else None
        self.rows: dict[str, tuple[Row, float]] = {}
        self._bytes = 0
        self._changed = asyncio.Event()
        self._moved_at = 0.0

    @property
    def idle(self) -> float:
        """Seconds since the last answer, or since the first row was sent; 0 without outstanding rows."""
        return asyncio.get_running_loop().time() - self._moved_at if self.rows else 0.0

    def add(self, request_id: str, row: Row) -> None:
        """Add a row that is being sent."""
        now = asyncio.get_running_loop().time()
        if not self.rows:
            self._moved_at = now
        self.rows[request_id] = row, now
        self._bytes += len(row.body)

    def answered(self, request_id: str) -> Row | None:
        """Remove and return a row that was answered; None if it was not outstanding."""
        self._moved_at = asyncio.get_running_loop().time()
        self._changed.set()
        row, sent_at = self.rows.pop(request_id, (None, 0.0))
        if row is not None:
            self._bytes -= len(row.body)
            self._pacer.answered(self._moved_at, self._moved_at - sent_at, len(self.rows))
        return row

    async def room(self) -> None:
        """Wait until another row may be sent."""
        if self._limiter:
            await self._limiter.acquire()
        clock = asyncio.get_running_loop().time
        await self.until(lambda: len(self.rows) < self._pacer.limit(clock()) and self._bytes < MOST_BYTES)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. It is checked after each answer."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()
