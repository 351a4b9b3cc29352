"""What a job is to do, and how it stands: rows that are out, rows by outcome, and what delays them."""

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

MOST_ERRORS: Final = 200  # different texts that are counted apart
OTHER: Final = "(other errors)"
MOST_BYTES: Final = 16 * 1024 * 1024  # of the rows that are out
HOLD: Final = 0.8  # seconds for which the rows of a job hold up others
LEAST_HOLD: Final = 0.2  # the same while calls are paused again and again, as by Retry-After
FORGIVEN: Final = 0.1  # seconds of a pause that are forgotten in each second
FEWEST: Final = 2  # rows
FIRST: Final = 16  # rows before any answer has come
MOST: Final = 10_000  # rows
RATE_OVER: Final = 1.0  # seconds
BURSTS: Final = 3  # answers that come in bursts are counted over so many of them


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job does. `outstanding` rows at most wait for their replies, or as many as are settled soon;
    `rate` is the most rows a second. Without `wait` it follows no replies.

    `results` is where results go. With `resumed` it is the same job again: rows
    keep their request ids, and replies that came after the earlier run had ended are taken in.
    """

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
    """Rows by what became of them. `total` is None while it is not known, `published` are those that the
    broker has confirmed. A row with several errors is counted with each. `overtaken` are those that something
    newer outside the job has superseded."""

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
        """Whether nothing is left to do: what something newer has superseded needs nothing."""
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
    """Why nothing comes back: a fault of the connection, what the workers say of themselves, or how the job
    stands. Empty while all goes well."""

    def __init__(self) -> None:
        self.broker = self.workers = self.job = ""

    @property
    def current(self) -> str:
        """The notice to show."""
        # A paused worker consumes nothing: that no worker takes requests is true then, and not the cause.
        return self.broker or self.workers or self.job

    def subscribed(self, queue: str, prefetch: int) -> None:
        self.broker = ""

    def broker_unreachable(self, why: str) -> None:
        self.broker = f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."


class Pacer:
    """Decides how many rows may be published and not answered, as pure arithmetic over the times of their
    answers: no more than are settled in two seconds (contract §12).

    The limit follows the rate at which answers come: as many as come in `HOLD` seconds, and in the time that
    an answer takes at best, with nothing of the job's own ahead of it. So others wait for `HOLD` seconds at
    most, and a slow upstream that takes many calls at once is used all the same.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._answers: deque[float] = deque()
        self._shortest = 0.0  # seconds from a row to its answer, at best
        self._paused = 0.0  # seconds without an answer lately, though rows were out
        self._last, self._were_out = 0.0, False

    def answered(self, now: float, seconds: float, out: int) -> None:
        """An answer has come after so many seconds, while so many rows are out."""
        self._answers.append(now)
        gap = now - self._last
        self._paused = max(0.0, self._paused - FORGIVEN * gap)
        if self._were_out:
            self._paused = max(self._paused, min(HOLD, gap - self._shortest))
        self._last, self._were_out = now, out > 0
        # With hardly a row out it is what the upstream takes now, though it took less before.
        if out < FEWEST or not self._shortest or seconds < self._shortest:
            self._shortest = seconds

    def limit(self, now: float) -> int:
        """How many rows may be out."""
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
    """The rows that have been sent and not answered, by their request ids, and when each was sent. One task
    at a time may wait."""

    def __init__(self, limit: int | None = None, rate: float | None = None) -> None:
        self._pacer = Pacer(limit)
        self._limiter = AsyncLimiter(1, 1 / rate) if rate else None
        self.rows: dict[str, tuple[Row, float]] = {}
        self._bytes = 0
        self._changed = asyncio.Event()
        self._moved_at = 0.0

    @property
    def idle(self) -> float:
        """Seconds since a row was answered, or the first one sent, while rows are out."""
        return asyncio.get_running_loop().time() - self._moved_at if self.rows else 0.0

    def add(self, request_id: str, row: Row) -> None:
        """A row goes out."""
        now = asyncio.get_running_loop().time()
        if not self.rows:
            self._moved_at = now
        self.rows[request_id] = row, now
        self._bytes += len(row.body)

    def answered(self, request_id: str) -> Row | None:
        """A row has come back; None if it was not out."""
        self._moved_at = asyncio.get_running_loop().time()
        self._changed.set()
        row, sent_at = self.rows.pop(request_id, (None, 0.0))
        if row is not None:
            self._bytes -= len(row.body)
            self._pacer.answered(self._moved_at, self._moved_at - sent_at, len(self.rows))
        return row

    async def room(self) -> None:
        """Wait until one more row may go out."""
        if self._limiter:
            await self._limiter.acquire()
        clock = asyncio.get_running_loop().time
        await self.until(lambda: len(self.rows) < self._pacer.limit(clock()) and self._bytes < MOST_BYTES)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that an answer brings about."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()
