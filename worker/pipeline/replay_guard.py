"""A replay never rolls a resource back (contract §4).

A replay is forwarded only if the journal shows that no request for its resource that was received later
has been registered. Requests that wait ahead of the replay are in its lane: they are settled, and recorded,
before the guard is asked.

The guard keeps an index of the journal in memory while replays come, and adds to it what this worker
settles. Another worker can have been active only between two subscriptions; what it recorded is read before
the next replay is judged.
"""

import asyncio
import time

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import Journal, open_journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.settlement import Settlement
from worker.contract.words import GENERIC, REPLAY_FORCE_HEADER
from worker.errors import BrokerUnreachable, TopologyError
from worker.events import EventListener
from worker.pipeline.arrival_clock import CatchUp
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings

RETRY_INTERVAL = 1.0  # seconds
IDLE_TIMEOUT = 300.0  # seconds without a replay, after which the index is dropped
# Dead letters are replayed roughly in the order in which their requests were received. With a margin, a
# few that are older do not make the journal be read again; it doubles each time that it was too small.
MARGIN = 3_600_000_000  # microseconds


class ReplayGuard:
    """Judges replays by the journal."""

    def __init__(
        self, settings: Settings, journal: Journal | None, catch_up: CatchUp, events: EventListener
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._catch_up = catch_up
        self._events = events
        # Replays are judged by `_index` alone, which is complete. What must be read first, or is being read,
        # is kept apart: a half-read index knows too little.
        self._index: JournalIndex | None = None
        self._unfinished: JournalIndex | None = None
        self._reading: asyncio.Task[JournalIndex] | None = None
        self._subscriptions = 0
        self._margin = MARGIN
        self._asked_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def subscription_began(self) -> None:
        """Another worker may have settled requests since the subscription before."""
        self._subscriptions += 1
        if self._index is not None and self._unfinished is None:
            self._unfinished = self._index
        self._index = None

    async def judge(self, request: Request) -> Outcome | None:
        """The outcome of a replay that must not be forwarded, or None."""
        if request.resource is None or _is_forced(request):
            return None
        received_at = max(0, request.received_at)  # a header can name any year
        if doubt := await self._doubt(received_at):
            return _forbidden(doubt)
        try:
            index = await self._current_index(received_at)
        except TopologyError as error:
            return _forbidden(str(error))
        newer = index.newer_than(request.resource, received_at)
        if newer is not None:
            return _superseded(newer)
        if not index.reaches_back_to(request.id, request.resource, received_at):
            return _forbidden("the journal does not reach back to when this request was received")
        return None

    def settled(self, settlement: Settlement) -> None:
        """A request's record is confirmed, and the next one of its resource has not begun."""
        if self._index is not None:
            self._index.settled(settlement)
        if self._unfinished is not None:
            self._unfinished.settled(settlement)

    async def close(self) -> None:
        """End what is under way."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _doubt(self, received_at: int) -> str:
        """Why the journal cannot decide, regardless of its records; `""` if it can."""
        if self._journal is None:
            return "the worker keeps no journal (OTT_JOURNAL=false)"
        return await self._catch_up.doubt(received_at)

    async def _current_index(self, received_at: int) -> JournalIndex:
        """All that was registered from `received_at` until now."""
        self._asked_at = time.monotonic()
        while self._index is None or self._index.since > received_at:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(received_at), name="replay guard")
            # Reading goes on even if the waiting delivery goes back to the queue: reading a long journal may
            # take longer than a delivery is held.
            index = await asyncio.shield(self._reading)
            if index.is_empty:
                return index  # not kept: the next replay reads the journal again
        return self._index

    async def _read(self, received_at: int) -> JournalIndex:
        assert self._journal is not None, "without a journal nothing is read"
        while True:
            subscription = self._subscriptions
            try:
                async with open_journal(self._settings) as reader:
                    await reader.catch_up(self._journal.mark)
                    index = await self._read_to_the_end(reader, received_at)
            except BrokerUnreachable as error:
                self._events.journal_unreadable(str(error))
                await asyncio.sleep(RETRY_INTERVAL)
            else:
                break
        if index.is_empty:
            self._unfinished = None
        elif subscription == self._subscriptions:
            self._index, self._unfinished = index, None
        if self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._drop_when_idle)
        return index

    async def _read_to_the_end(self, reader: StreamReader, received_at: int) -> JournalIndex:
        first = await reader.first()
        index = self._unfinished
        if index is None or index.since > received_at or not index.continues(first):
            if any(known is not None and known.since > received_at for known in (index, self._index)):
                self._margin *= 2
            index = self._unfinished = JournalIndex(since=max(0, received_at - self._margin))
        await read_into(index, reader, first)
        return index

    def _drop_when_idle(self) -> None:
        self._idle_timer = None
        left = self._asked_at + IDLE_TIMEOUT - time.monotonic()
        if left > 0 or (self._reading is not None and not self._reading.done()):
            left = max(left, RETRY_INTERVAL)
            self._idle_timer = asyncio.get_running_loop().call_later(left, self._drop_when_idle)
        else:
            self._index = self._unfinished = None
            self._margin = MARGIN


def _is_forced(request: Request) -> bool:
    return request.header(REPLAY_FORCE_HEADER) is True


def _superseded(newer: str) -> Outcome:
    return Outcome(
        "superseded",
        message="A newer request for this resource has been registered; this replay was not forwarded.",
        errorcode=GENERIC,
        superseded_by=newer,
    )


def _forbidden(why: str) -> Outcome:
    message = (
        f"It is not known whether this replay would overwrite a newer registration: {why}. "
        "Replay it with --force to have it sent all the same."
    )
    return Outcome("failed", "forbidden", message, GENERIC)
