"""The last hour, minute by minute, from the journal. It is followed only while somebody looks."""

import asyncio
import contextlib
import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.amqp.stream_reader import Entry, Start, StreamReader
from worker.broker.journal import open_journal
from worker.errors import WorkerError
from worker.settings import Settings

MINUTES = 60
LATENCY_MINUTES = 5
LATENCIES_KEPT = 5_000
IDLE = 20.0  # seconds after the last look; then the journal is followed no more
RETRY_INTERVAL = 5.0  # seconds
BREATH = 50  # messages between two pauses for the pages
STATUSES = ("registered", "superseded", "rejected", "failed")


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds from a request's arrival to its outcome, over the last minutes."""

    median: float
    p95: float


class LastHour:
    """Counts of settled requests. `trouble` is why the journal could not be read, empty where it could."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counts: dict[int, Counter[str]] = {}
        self._latencies: deque[tuple[float, float]] = deque(maxlen=LATENCIES_KEPT)
        self._next: int | None = None
        self._looked_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self.is_read = False
        self.trouble = ""

    def look(self) -> None:
        """Somebody looks: follow the journal for a while."""
        self._looked_at = time.monotonic()
        if self._settings.journal and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="last hour")

    async def close(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def minutes(self, now: datetime) -> list[tuple[datetime, Mapping[str, int]]]:
        """Settled requests by status for each minute of the last hour, the oldest first."""
        newest = _minute(now)
        self._forget(newest)
        return [
            (datetime.fromtimestamp(minute * 60, UTC), self._counts.get(minute, Counter()))
            for minute in range(newest - MINUTES + 1, newest + 1)
        ]

    def latency(self, now: datetime) -> Latencies | None:
        """Of the last minutes; None where nothing was settled."""
        since = now.timestamp() - LATENCY_MINUTES * 60
        recent = [seconds for at, seconds in self._latencies if at >= since]
        if len(recent) < 2:
            return Latencies(recent[0], recent[0]) if recent else None
        return Latencies(statistics.median(recent), statistics.quantiles(recent, n=20)[-1])

    async def _run(self) -> None:
        while time.monotonic() - self._looked_at < IDLE:
            try:
                async with open_journal(self._settings) as reader:
                    self.trouble = ""
                    await self._follow(reader)
            except WorkerError as error:
                self.trouble = str(error)
                await asyncio.sleep(RETRY_INTERVAL)

    async def _follow(self, reader: StreamReader) -> None:
        async with contextlib.aclosing(reader.read(self._start())) as entries:
            read = 0
            async for entry in entries:
                self._take(entry)
                read += 1
                if read % BREATH == 0:
                    await asyncio.sleep(0)
        self.is_read = True
        following = asyncio.create_task(self._follow_on(reader))
        try:
            while not following.done() and time.monotonic() - self._looked_at < IDLE:
                await asyncio.wait({following}, timeout=1)
            if following.done():
                following.result()
        finally:
            following.cancel()
            await asyncio.wait({following})

    async def _follow_on(self, reader: StreamReader) -> None:
        async with contextlib.aclosing(reader.follow(self._start())) as entries:
            async for entry in entries:
                self._take(entry)

    def _start(self) -> Start:
        if self._next is not None:
            return self._next
        return datetime.now(UTC) - timedelta(minutes=MINUTES)

    def _take(self, entry: Entry) -> None:
        self._next = entry.offset + 1
        for record in entry.records:
            completed = time_of(record, "completedAt")
            if completed is None:
                continue
            counts = self._counts.setdefault(_minute(completed), Counter())
            counts[str(record.get("status"))] += 1
            received = time_of(record, "receivedAt")
            if received is not None:
                seconds = max(0.0, (completed - received).total_seconds())
                self._latencies.append((completed.timestamp(), seconds))
        self._forget(_minute(datetime.now(UTC)))

    def _forget(self, newest: int) -> None:
        for minute in [minute for minute in self._counts if minute <= newest - MINUTES]:
            del self._counts[minute]


def time_of(record: Mapping[str, Any], field: str) -> datetime | None:
    """A time of a journal record, None where it names none."""
    text = record.get(field)
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _minute(moment: datetime) -> int:
    return int(moment.timestamp() // 60)
