"""Protects newer registrations from replays and dated requests (contract §2, §4).

A replay, or a request with `x-ott-as-of`, is not forwarded if the journal has a registration of the same
resource with a later time. Earlier requests of the resource are in the same lane: they are settled and
recorded before. If the journal does not reach back far enough, a replay is refused, and a dated request is
forwarded.

The guard keeps an index of the journal in memory while such requests arrive, and adds what this worker
settles. Another worker can have been active only between two subscriptions; its records are read before the
next request is judged. Its clock may have been ahead: so before a worker takes over, it raises its own clock
to the latest time in the journal."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import Journal, open_journal
from worker.broker.journal_index import JournalIndex, around, read_into
from worker.contract.settlement import Resource, Settlement
from worker.contract.timestamps import YEAR_2100, ArrivalClock
from worker.contract.words import GENERIC, REPLAY_FORCE_HEADER
from worker.errors import TopologyError, WorkerError
from worker.events import EventListener
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings

CATCH_UP_TIMEOUT = 2.0  # seconds that requests wait for the journal
READ_TIMEOUT = 10.0  # seconds, for the journal's time
LAST_ENTRIES = 200  # of the journal, which are searched for the latest time
RETRY_INTERVAL = 1.0  # seconds
IDLE_TIMEOUT = 300.0  # seconds without a request to judge, after which the index is dropped
# Requests arrive roughly in the order of their times. With this margin, a few older ones do not require
# reading further back. It doubles each time that it is too small.
MARGIN = 3_600_000_000  # microseconds

T = TypeVar("T")


class ReplayGuard:
    """Judges replays and dated requests by the journal."""

    def __init__(
        self, settings: Settings, journal: Journal | None, clock: ArrivalClock, events: EventListener
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._clock = clock
        self._events = events
        self._catching_up: asyncio.Task[None] | None = None
        self._has_timed_out = False
        self._doubtful = range(0)  # arrivals while the clocks of two workers differed
        self._index: JournalIndex | None = None
        self._next_index: JournalIndex | None = None  # until it is known whether the present one goes on
        self._subscriptions = 0
        self._current_in = -1  # the subscription in which the index has been read to its end
        self._reading: asyncio.Task[JournalIndex] | None = None
        self._margin = MARGIN
        self._asked_at = 0.0  # when a request was last judged

    async def take_over(self) -> None:
        """Before a subscription's first request, raise the clock to the journal's time. Takes at most
        CATCH_UP_TIMEOUT and never fails. If the journal does not answer in time, requests are processed while
        it is read, and replays wait."""
        self.subscription_began()
        if self._journal is None:
            return
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up(self._clock.stamp()), name="arrival clock")
        await asyncio.wait({self._catching_up}, timeout=CATCH_UP_TIMEOUT)
        if not self._catching_up.done():
            self._has_timed_out = True
            self._events.journal_unreadable("no answer in time")

    def subscription_began(self) -> None:
        """A subscription or epoch (contract §10) begins: another worker may have settled requests since the
        last one."""
        self._subscriptions += 1

    async def judge(self, request: Request) -> Outcome | None:
        """The outcome of a replay or dated request that must not be forwarded, or None."""
        if request.resource is None or is_forced(request):
            return None
        newer, doubt = await self._look_up(request, request.resource)
        if newer:
            return superseded(newer)
        return _forbidden(doubt) if doubt and request.is_replay else None

    async def _look_up(self, request: Request, resource: Resource) -> tuple[str | None, str]:
        """The id of a newer registration, or why the journal cannot rule one out."""
        true_at, received_at = max(0, request.true_at), max(0, request.received_at)  # any year is possible
        if self._journal is None:
            return None, "the worker keeps no journal (OTT_JOURNAL=false)"
        if request.is_replay and (doubt := await self._doubt(received_at)):
            return None, doubt
        try:
            index = await self._current_index(true_at)
        except TopologyError as error:
            return None, str(error)
        newer = index.newer_than(resource, true_at)
        if newer is None and not index.reaches_back_to(request.id, resource, received_at):
            return None, "the journal does not reach back to when this request was received"
        return newer, ""

    async def _doubt(self, received_at: int) -> str:
        """Why no time can be compared with that of a request received then; `""` if it can. Waits until the
        clock is raised."""
        if self._catching_up is not None:
            await asyncio.shield(self._catching_up)
        differed = received_at in self._doubtful
        return "it was received while the clocks of two workers differed" if differed else ""

    def settled(self, settlement: Settlement) -> None:
        """A request's record is confirmed; the next request of its resource has not started."""
        if self._next_index is not None:
            self._next_index.settled(settlement)
        if self._index is None:
            return
        is_idle = self._reading is None or self._reading.done()
        if is_idle and time.monotonic() - self._asked_at > IDLE_TIMEOUT:
            self._index, self._margin = None, MARGIN
        else:
            self._index.settled(settlement)

    def close(self) -> None:
        """Stop reading the journal."""
        for task in (self._catching_up, self._reading):
            if task is not None:
                task.cancel()

    async def _current_index(self, true_at: int) -> JournalIndex:
        """An index of all registrations with a time from `true_at` until now."""
        self._asked_at = time.monotonic()
        while True:
            index = self._index
            if index is not None and self._current_in == self._subscriptions and index.since <= true_at:
                return index
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(true_at), name="replay guard")
            # Reading continues even if the waiting delivery is requeued: a long journal may take longer than
            # a delivery may be held.
            index = await asyncio.shield(self._reading)
            if index.is_empty:
                return index  # not kept: the next judgement reads the journal again

    async def _read(self, true_at: int) -> JournalIndex:
        journal = self._journal
        assert journal is not None, "without a journal nothing is read"

        async def read_on(reader: StreamReader) -> JournalIndex:
            subscription = self._subscriptions
            # A replica that lags behind may not show what is settled from here on.
            fresh = self._next_index = JournalIndex(true_at - self._margin)
            await reader.catch_up(journal.mark)
            first = await reader.first()
            if self._index is None or not self._index.continues(first):
                self._index, self._current_in = fresh, -1
            elif self._index.since > true_at:
                self._margin *= 2
            index, self._next_index = self._index, None
            await read_into(index, reader, first, true_at - self._margin)
            self._current_in = -1 if index.is_empty else subscription
            return index

        index = await self._until_read(read_on)
        self._asked_at = time.monotonic()  # the waiting requests are about to be judged
        return index

    async def _catch_up(self, begun: int) -> None:
        journal = self._journal
        assert journal is not None, "without a journal nothing is read"

        async def newest(reader: StreamReader) -> int:
            last = await reader.last()
            # With partitions several workers write, and one clock may be behind. An entry without a time
            # comes from a publisher with a CC header.
            is_brief = last is not None and last.clock is not None and not self._has_timed_out
            start = max(0, last.offset - LAST_ENTRIES) if last and is_brief else around(begun)
            async with contextlib.aclosing(reader.read(start)) as entries:
                # After the time-out requests are already processed, so this worker writes too.
                others = [e.clock or 0 async for e in entries if is_brief or e.writer != journal.writer]
            return max((clock for clock in others if clock < YEAR_2100), default=0)

        try:
            latest = await self._until_read(newest, READ_TIMEOUT)
        except TopologyError as error:
            self._events.journal_unreadable(str(error))
            return
        if self._has_timed_out:
            # Requests received meanwhile may have times from a clock that was behind the other worker's.
            self._doubtful = range(begun, latest + 1)
        self._has_timed_out = False
        self._clock.raise_floor(latest)

    async def _until_read(
        self, read: Callable[[StreamReader], Awaitable[T]], timeout: float | None = None
    ) -> T:
        """The result of `read` on the journal, retried until it succeeds. Raises TopologyError."""
        while True:
            try:
                async with asyncio.timeout(timeout), open_journal(self._settings) as reader:
                    return await read(reader)
            except TopologyError:
                raise
            except (TimeoutError, WorkerError) as error:
                self._events.journal_unreadable(str(error) or "no answer in time")
            await asyncio.sleep(RETRY_INTERVAL)


def is_forced(request: Request) -> bool:
    """Whether the request is a replay that an operator forces, whatever the journal holds."""
    return request.is_replay and request.header(REPLAY_FORCE_HEADER) is True


def superseded(newer: str) -> Outcome:
    """The outcome of a request that the request `newer` supersedes."""
    return Outcome(
        "superseded",
        message="A newer request for this resource has been registered; this one was not forwarded.",
        errorcode=GENERIC,
        superseded_by=newer,
    )


def _forbidden(why: str) -> Outcome:
    message = (
        f"It is not known whether this replay would overwrite a newer registration: {why}. "
        "Use --force to send it anyway."
    )
    return Outcome("failed", "forbidden", message, GENERIC)
