"""The last hour of the journal: what was settled in each second, and how long that took."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

from worker.amqp.stream_reader import StreamReader
from worker.contract.timestamps import microseconds
from worker.contract.words import STATUSES

HOUR = 3600  # seconds
MINUTE = 60  # seconds
LATENCY_SPAN = 5 * MINUTE  # seconds
LATENCIES_KEPT = 20  # per second
BREATH = 50  # messages between yields to other tasks
WINDOW = 500  # messages in the first window; each further window is twice as large


class LastHour:
    """Requests settled in the last hour. The first `read` reads an hour, the next ones what is new."""

    def __init__(self) -> None:
        self._counts: dict[int, Counter[str]] = {}  # by second and status
        self._latencies: dict[int, list[float]] = {}  # a sample of each second
        self._back = 0  # the first offset that was read
        self._next = -1  # the offset after the last that was read; -1 before the first reading
        self._oldest = time.time()
        self.is_complete = False

    async def read(self, reader: StreamReader, budget: float = float("inf")) -> None:
        """Read the journal. If that takes longer than `budget` seconds, the oldest part is left for the next
        reading. Raises TopologyError or BrokerUnreachable."""
        deadline, now = time.monotonic() + budget, time.time()
        newest, first = await reader.last(), await reader.first()
        end = 0 if newest is None else newest.offset + 1
        if not 0 <= self._next <= end:  # the first reading, or another stream of the same name
            self._counts, self._latencies, self._oldest = {}, {}, now
            self._next = self._back = end
        if end > self._next:
            await self._take(reader, self._next, end - 1)
            self._next = end
        # Backwards from the end, so that the newest records are known even if time runs out.
        kept, step = 0 if first is None else first.offset, WINDOW
        while not self._is_read(kept, now) and time.monotonic() < deadline:
            start = max(kept, self._back - step)
            await self._take(reader, start, self._back - 1)
            self._back, step = start, step * 2
        self.is_complete = self._is_read(kept, now)
        for second in [second for second in self._counts if second <= now - HOUR]:
            del self._counts[second], self._latencies[second]

    def settled(self, seconds: int) -> dict[str, int]:
        """The requests settled in the last `seconds`, by status. `seconds` in the result is smaller if less
        is known yet."""
        now = time.time()
        counts: Counter[str] = Counter()
        for second, known in self._counts.items():
            if second > now - seconds:
                counts.update(known)
        known_for = seconds if self.is_complete else min(seconds, round(now - self._oldest))
        return {"seconds": known_for, **{status: counts[status] for status in STATUSES}}

    def minutes(self) -> list[tuple[datetime, Mapping[str, int]]]:
        """The requests settled in each minute of the last hour, by status, oldest first."""
        newest = int(time.time() // MINUTE)
        counts: dict[int, Counter[str]] = {minute: Counter() for minute in range(newest - 59, newest + 1)}
        for second, known in self._counts.items():
            if second // MINUTE in counts:
                counts[second // MINUTE].update(known)
        return [(datetime.fromtimestamp(minute * MINUTE, UTC), each) for minute, each in counts.items()]

    def latency(self) -> dict[str, float] | None:
        """Seconds from a request's arrival to its outcome, in the last five minutes: `median` and `p95`. None
        if nothing was settled."""
        since = time.time() - LATENCY_SPAN
        recent = sorted(each for at, known in self._latencies.items() if at >= since for each in known)
        if not recent:
            return None
        return {"median": statistics.median(recent), "p95": recent[len(recent) * 95 // 100]}

    def _is_read(self, kept: int, now: float) -> bool:
        return self._back <= kept or self._oldest <= now - HOUR

    async def _take(self, reader: StreamReader, start: int, last: int) -> None:
        """Count the records from `start` to the offset `last`."""
        async for entry in reader.read(start, last + 1):
            for record in entry.records:
                self._count(record)
            if entry.offset % BREATH == 0:
                await asyncio.sleep(0)

    def _count(self, record: Mapping[str, object]) -> None:
        completed, received = (microseconds(str(record.get(name))) for name in ("completedAt", "receivedAt"))
        status = str(record.get("status"))
        if completed is None or status not in STATUSES:
            return
        at = completed // 1_000_000
        self._oldest = min(self._oldest, at)
        self._counts.setdefault(at, Counter())[status] += 1
        latencies = self._latencies.setdefault(at, [])
        is_first = not record.get("replay")  # the request of a replay was received long before
        if received is not None and is_first and len(latencies) < LATENCIES_KEPT:
            latencies.append(max(0, completed - received) / 1_000_000)
