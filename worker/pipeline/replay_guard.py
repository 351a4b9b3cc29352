"""The latest truth wins (contract §2, §4).

A request with `x-ott-as-of`, or a replay, is not forwarded if the journal has a registration of the same
resource that was true later. Requests that wait ahead of it are in its lane: they are settled, and recorded,
before the guard is asked. Where the journal cannot tell, a replay is refused; any other request is forwarded.

The guard keeps an index of the journal in memory while such requests come, and adds to it what this worker
settles. Another worker can have been active only between two subscriptions; what it recorded is read before
the next request is judged.
"""

import asyncio
import time

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import Journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.settlement import Resource, Settlement
from worker.contract.words import GENERIC, REPLAY_FORCE_HEADER
from worker.errors import TopologyError
from worker.events import EventListener
from worker.pipeline.arrival_clock import ArrivalClock, CatchUp, read_journal
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings

IDLE_TIMEOUT = 300.0  # seconds without a request to judge, after which the index is dropped
# Requests come roughly in the order in which they were true. With a margin, a few that are older do not make
# the journal be read further back; it doubles each time that it was too small.
MARGIN = 3_600_000_000  # microseconds


class ReplayGuard:
    """Judges replays, and requests that tell when they were true, by the journal."""

    def __init__(
        self, settings: Settings, journal: Journal | None, clock: ArrivalClock, events: EventListener
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._catch_up = CatchUp(settings, clock, events)
        self._events = events
        self._index: JournalIndex | None = None
        self._subscriptions = 0
        self._current_in = -1  # the subscription in which the index has been read to its end
        self._reading: asyncio.Task[JournalIndex] | None = None
        self._margin = MARGIN
        self._asked_at = 0.0  # the last request to judge

    @property
    def has_index(self) -> bool:
        """Whether the journal, or a part of it, is in memory."""
        return self._index is not None

    async def take_over(self) -> None:
        """Before a subscription's first request: another worker may have been active."""
        self.subscription_began()
        if self._journal is not None:
            await self._catch_up.run()

    def subscription_began(self) -> None:
        """Another worker may have settled requests since the subscription before."""
        self._subscriptions += 1

    async def judge(self, request: Request) -> Outcome | None:
        """The outcome of a replay or of a dated request that must not be forwarded, or None."""
        if request.resource is None or is_forced(request):
            return None
        newer, doubt = await self._look_up(request, request.resource)
        if newer:
            return superseded(newer)
        return _forbidden(doubt) if doubt and request.is_replay else None

    async def _look_up(self, request: Request, resource: Resource) -> tuple[str | None, str]:
        """The newer registration, or why the journal cannot tell."""
        true_at, received_at = max(0, request.true_at), max(0, request.received_at)  # any year is possible
        if self._journal is None:
            return None, "the worker keeps no journal (OTT_JOURNAL=false)"
        if request.is_replay and (doubt := await self._catch_up.doubt(received_at)):
            return None, doubt
        try:
            index = await self._current_index(true_at)
        except TopologyError as error:
            return None, str(error)
        newer = index.newer_than(resource, true_at)
        if newer is None and not index.reaches_back_to(request.id, resource, received_at):
            return None, "the journal does not reach back to when this request was received"
        return newer, ""

    def settled(self, settlement: Settlement) -> None:
        """A request's record is confirmed, and the next one of its resource has not begun."""
        if self._index is None:
            return
        is_idle = self._reading is None or self._reading.done()
        if is_idle and time.monotonic() - self._asked_at > IDLE_TIMEOUT:
            self._index, self._margin = None, MARGIN
        else:
            self._index.settled(settlement)

    def close(self) -> None:
        """End what is under way."""
        self._catch_up.close()
        if self._reading is not None:
            self._reading.cancel()

    async def _current_index(self, true_at: int) -> JournalIndex:
        """All that was registered and true from `true_at` until now."""
        self._asked_at = time.monotonic()
        while True:
            index = self._index
            if index is not None and self._current_in == self._subscriptions and index.since <= true_at:
                return index
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(true_at), name="replay guard")
            # Reading goes on even if the waiting delivery goes back to the queue: reading a long journal may
            # take longer than a delivery is held.
            index = await asyncio.shield(self._reading)
            if index.is_empty:
                return index  # not kept: the next one to judge reads the journal again

    async def _read(self, true_at: int) -> JournalIndex:
        journal = self._journal
        assert journal is not None, "without a journal nothing is read"

        async def read_on(reader: StreamReader) -> JournalIndex:
            subscription = self._subscriptions
            await reader.catch_up(journal.mark)
            first = await reader.first()
            if self._index is None or not self._index.continues(first):
                self._index, self._current_in = JournalIndex(true_at - self._margin), -1
            elif self._index.since > true_at:
                self._margin *= 2
            index = self._index
            await read_into(index, reader, first, true_at - self._margin)
            self._current_in = -1 if index.is_empty else subscription
            return index

        index = await read_journal(self._settings, self._events, read_on)
        self._asked_at = time.monotonic()  # those who wait for it have yet to look
        return index


def is_forced(request: Request) -> bool:
    """Whether an operator has it sent whatever the journal says."""
    return request.is_replay and request.header(REPLAY_FORCE_HEADER) is True


def superseded(newer: str) -> Outcome:
    """The outcome of a request that a newer one, `newer`, has overtaken."""
    return Outcome(
        "superseded",
        message="A newer request for this resource has been registered; this one was not forwarded.",
        errorcode=GENERIC,
        superseded_by=newer,
    )


def _forbidden(why: str) -> Outcome:
    message = (
        f"It is not known whether this replay would overwrite a newer registration: {why}. "
        "Replay it with --force to have it sent all the same."
    )
    return Outcome("failed", "forbidden", message, GENERIC)
