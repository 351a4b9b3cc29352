"""The clock that stamps arrivals: a later arrival always has the later time (contract §2, §4).

Whether a replay is older than the newest registration is decided by these times, also after a fail-over
to a machine whose clock is behind. So a worker that takes over first learns from the journal how far the
time of the worker before it had come.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import open_journal
from worker.broker.journal_index import around
from worker.contract.timestamps import now
from worker.errors import TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

CATCH_UP_TIMEOUT = 2.0  # seconds that requests wait for the journal; they hardly ever need to
READ_TIMEOUT = 10.0  # seconds
RETRY_INTERVAL = 1.0  # seconds
YEAR_2100 = 4_102_444_800_000_000  # microseconds since the epoch

T = TypeVar("T")


class ArrivalClock:
    """The wall clock, except that it never gives the same time twice and never one below its floor."""

    def __init__(self, wall_clock: Callable[[], int] = now) -> None:
        self._wall_clock = wall_clock
        self._latest = 0

    def stamp(self) -> int:
        """Microseconds since the epoch."""
        self._latest = max(self._wall_clock(), self._latest + 1)
        return self._latest

    @property
    def latest(self) -> int:
        """The newest stamp that this worker, or another with the same clock, may have given by now."""
        return max(self._wall_clock(), self._latest)

    def raise_floor(self, moment: int) -> None:
        """From now on, stamps are later than `moment`. A moment beyond this century is ignored: no worker
        writes one, but a forged journal record could hold it."""
        if moment < YEAR_2100:
            self._latest = max(self._latest, moment)


async def read_journal(
    settings: Settings,
    events: EventListener,
    read: Callable[[StreamReader], Awaitable[T]],
    timeout: float | None = None,
) -> T:
    """What `read` makes of the journal, tried until it answers. Raises TopologyError."""
    while True:
        try:
            async with asyncio.timeout(timeout), open_journal(settings) as reader:
                return await read(reader)
        except TopologyError:
            raise
        except (TimeoutError, WorkerError) as error:
            events.journal_unreadable(str(error) or "no answer in time")
        await asyncio.sleep(RETRY_INTERVAL)


class CatchUp:
    """Brings the arrival clock up to the journal's time, before a subscription's first request."""

    def __init__(self, settings: Settings, clock: ArrivalClock, events: EventListener) -> None:
        self._settings = settings
        self._clock = clock
        self._events = events
        self._reading: asyncio.Task[None] | None = None
        self._has_timed_out = False
        self._doubtful = range(0)

    async def run(self) -> None:
        """Takes `CATCH_UP_TIMEOUT` at most and never fails. If the journal does not answer by then, requests
        go on and reading it goes on beside them; until it has ended, replays wait (`doubt`)."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(self._clock.stamp()), name="arrival clock")
        await asyncio.wait({self._reading}, timeout=CATCH_UP_TIMEOUT)
        if not self._reading.done():
            self._has_timed_out = True
            self._events.journal_unreadable("no answer in time")

    async def doubt(self, received_at: int) -> str:
        """Why the worker cannot tell what is newer than a request received then; `""` if it can. Waits for
        the journal's answer."""
        if self._reading is not None:
            await asyncio.shield(self._reading)
        if received_at in self._doubtful:
            return "it was received while the clocks of two workers differed"
        return ""

    def close(self) -> None:
        """End what is under way."""
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, begun: int) -> None:
        async def newest(reader: StreamReader) -> int:
            if not self._has_timed_out:
                last = await reader.last()
                return 0 if last is None else last.clock or 0
            # Since requests are let in, the newest entry shows this worker's own clock.
            async with contextlib.aclosing(reader.read(around(begun))) as entries:
                clocks = [entry.clock or 0 async for entry in entries]
            return max((clock for clock in clocks if clock < YEAR_2100), default=0)

        try:
            latest = await read_journal(self._settings, self._events, newest, READ_TIMEOUT)
        except TopologyError as error:
            self._events.journal_unreadable(str(error))
            return
        if self._has_timed_out and latest > self._clock.latest:
            # Requests received meanwhile were stamped by a clock that was behind.
            self._doubtful = range(begun, latest + 1)
        self._has_timed_out = False
        self._clock.raise_floor(latest)
