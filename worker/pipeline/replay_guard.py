"""What the journal knows of earlier settlements: a replay never rolls a resource back (contract §4).

A replay is forwarded only if the journal shows that no request for its resource that was received later
has been registered. Those that wait ahead of it in the queue are settled, and recorded, before its turn
comes: they are in the same lane. So the journal is asked when the turn has come.

What was read is kept in memory while replays come, and grows with what this worker settles. Another
worker can have been active only between two subscriptions; what it wrote is read before the next replay
is judged.
"""

import asyncio
import contextlib
import time
from datetime import UTC, datetime

from worker.broker.journal_reader import Entry, JournalReader, Start, open_journal
from worker.contract.words import GENERIC, REPLAY_FORCE_HEADER
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.pipeline.journal_index import JournalIndex
from worker.pipeline.request import LATEST, Clock, Outcome, Request
from worker.settings import Settings

PREPARE_TIMEOUT = 2.0  # seconds; requests wait for this, and hardly ever need it
READ_TIMEOUT = 10.0  # seconds
RETRY = 1.0  # seconds
IDLE = 300.0  # seconds without a replay, then what was read is forgotten
# Dead letters are replayed roughly in the order in which their requests were received. A margin lets a
# few that are older come later without reading again; it doubles each time that it was too small.
MARGIN = 3_600_000_000  # microseconds
SKEW = 600_000_000  # microseconds between the broker's clock and ours that cost nothing


class ReplayGuard:
    """Looks replays up in the journal."""

    def __init__(self, settings: Settings, clock: Clock, events: EventListener) -> None:
        self._settings = settings
        self._clock = clock
        self._events = events
        self._newest: JournalIndex | None = None
        self._loading: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._is_blind = False
        self._doubtful = range(0)  # times of arrival whose order is not known: this clock was behind
        self._subscription = 0
        self._read_in = -1  # the subscription in which the journal was read to its end
        self._margin = MARGIN
        self._used_at = 0.0
        self._forgetting: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        """Before the first delivery of a subscription: learn how far the journal's time has come, so that
        what is received from now on counts as newer. Takes two seconds at most, and never fails: where the
        journal does not answer, requests go on, and replays are refused until it does."""
        self._subscription += 1
        if not self._settings.journal:
            return
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._learn(self._clock.stamp()), name="clock")
        await asyncio.wait({self._learning}, timeout=PREPARE_TIMEOUT)
        if not self._learning.done():
            self._is_blind = True
            self._events.journal_unreadable("no answer in time")

    async def _learn(self, begun: int) -> None:
        while True:
            try:
                async with asyncio.timeout(READ_TIMEOUT), open_journal(self._settings) as reader:
                    # Once requests are let in, the newest entry is of this worker's own clock.
                    latest = await (_newest_clock(reader, begun) if self._is_blind else _last_clock(reader))
            except TopologyError as error:
                self._events.journal_unreadable(str(error))
                return
            except (TimeoutError, WorkerError) as error:
                self._events.journal_unreadable(str(error) or "no answer in time")
                await asyncio.sleep(RETRY)
            else:
                break
        if self._is_blind and latest > self._clock.latest:
            self._doubtful = range(begun, latest + 1)
        self._is_blind = False
        self._clock.not_before(latest)

    async def judge_replay(self, request: Request) -> Outcome | None:
        """The outcome of a replay that must not be forwarded, or None."""
        if request.resource is None or _is_forced(request):
            return None
        received_at = max(0, request.received_at)  # a header can name any year
        if doubt := self._doubt(received_at):
            return _refused(doubt)
        try:
            newest = await self._up_to_date(received_at)
        except TopologyError as error:
            return _refused(str(error))
        newer = newest.newer_than(request.resource, received_at)
        if newer is not None:
            return _superseded(newer)
        if not newest.reaches_back_to(request.id, request.resource, received_at):
            return _refused("the journal does not reach back to when this request was received")
        return None

    def _doubt(self, received_at: int) -> str:
        """Why the journal cannot tell, whatever it holds; `""` where it can."""
        if not self._settings.journal:
            return "the worker keeps no journal (OTT_JOURNAL=false)"
        if self._learning is not None and not self._learning.done():
            return "the journal has not answered since this worker took over"
        if received_at in self._doubtful:
            return "it was received while the clocks of two workers differed"
        return ""

    def settled(self, request: Request, outcome: Outcome) -> None:
        """A request's record is confirmed, and the next one of its resource has not begun."""
        if self._newest is not None:
            self._newest.settled(request, outcome)

    async def close(self) -> None:
        """End what is under way."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        for task in (self._loading, self._learning):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _up_to_date(self, received_at: int) -> JournalIndex:
        """What the journal holds from `received_at` on, up to now."""
        self._used_at = time.monotonic()
        while True:
            newest = self._newest
            if newest is not None and self._read_in == self._subscription and newest.since <= received_at:
                return newest
            if self._loading is None or self._loading.done():
                self._loading = asyncio.create_task(self._load(received_at), name="journal")
            # It goes on when the delivery that asked goes back: a long journal may take longer than a
            # delivery is held, and is read to the end all the same.
            await asyncio.shield(self._loading)
            if self._newest is not None and self._newest.is_empty:
                return self._newest  # and look again for the next one

    async def _load(self, received_at: int) -> None:
        while True:
            subscription = self._subscription
            try:
                async with open_journal(self._settings) as reader:
                    await self._read(reader, received_at)
            except BrokerUnreachable as error:
                self._events.journal_unreadable(str(error))
                await asyncio.sleep(RETRY)
            else:
                break
        self._read_in = -1 if self._newest is None or self._newest.is_empty else subscription
        if self._forgetting is None:
            self._forgetting = asyncio.get_running_loop().call_later(IDLE, self._forget)

    async def _read(self, reader: JournalReader, received_at: int) -> None:
        first = await reader.first()
        newest = self._newest
        if newest is None or newest.since > received_at or not newest.continues(first):
            if newest is not None and newest.since > received_at:
                self._margin *= 2
            newest = self._newest = JournalIndex(since=max(0, received_at - self._margin))
        await read_into(newest, reader, first)

    def _forget(self) -> None:
        self._forgetting = None
        left = self._used_at + IDLE - time.monotonic()
        if left > 0:
            self._forgetting = asyncio.get_running_loop().call_later(left, self._forget)
        else:
            self._newest = None
            self._margin = MARGIN


async def read_into(newest: JournalIndex, reader: JournalReader, first: Entry | None) -> None:
    """Read on, to the end. `first` is the stream's first entry. Raises as JournalReader does."""
    last = await reader.last()
    reach = -1 if last is None else last.offset
    if newest.began_at is None:
        await _read_from(_around(newest.since), newest, reader, first, reach)
        if not newest.covers(first):
            # The broker's clock is far from ours: what its times say is of no use.
            newest.began_at = None
            await _read_from("first", newest, reader, first, reach)
    else:
        await _read_from(newest.next_offset, newest, reader, first, reach)
    newest.complete(await reader.first())


async def _read_from(
    start: Start, newest: JournalIndex, reader: JournalReader, first: Entry | None, reach: int
) -> None:
    async with contextlib.aclosing(reader.read(start, reach=reach)) as entries:
        async for entry in entries:
            newest.read(entry, first)


async def _last_clock(reader: JournalReader) -> int:
    last = await reader.last()
    return 0 if last is None else last.clock or 0


async def _newest_clock(reader: JournalReader, begun: int) -> int:
    async with contextlib.aclosing(reader.read(_around(begun))) as entries:
        clocks = [entry.clock or 0 async for entry in entries]
    return max((clock for clock in clocks if clock < LATEST), default=0)


def _around(since: int) -> datetime:
    return datetime.fromtimestamp(max(0, since - SKEW) / 1_000_000, UTC)


def _is_forced(request: Request) -> bool:
    return request.delivery.properties.header(REPLAY_FORCE_HEADER) is True


def _superseded(newer: str) -> Outcome:
    return Outcome(
        "superseded",
        message="A newer request for this resource has been registered; this replay was not forwarded.",
        errorcode=GENERIC,
        superseded_by=newer,
    )


def _refused(why: str) -> Outcome:
    message = (
        f"It is not known whether this replay would overwrite a newer registration: {why}. "
        "Replay it with --force to have it sent all the same."
    )
    return Outcome("failed", "forbidden", message, GENERIC)
