"""The gate: an outage of Marketing Cloud is a pause, never a dead letter (contract §6).

    state    | what happens                            | next state
    ---------|-----------------------------------------|------------------------------------------------
    OPEN     | too many failures in a row, or `close`  | CLOSED
    CLOSED   | the probe fails                         | CLOSED, the next probe after a longer back-off
    CLOSED   | the probe succeeds                      | OPENING, or OPEN if nobody waits
    OPENING  | a call of the present level succeeds    | OPENING at twice the level, OPEN if nobody waits
    OPENING  | a call fails, or `close`                | CLOSED
    CLOSED,  | the deliveries go back to the queue     | LEFT: another worker may have them next, so what
    OPENING  |                                         | Marketing Cloud does is no longer known here
    LEFT     | a request comes                         | CLOSED, with this request as the probe

One probe at a time goes through a closed gate, each time another request, so that a request that always fails
cannot keep it closed. The level of an opening gate is the number of calls that may be under way at once.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Self

from worker.backoff import ceiling
from worker.events import EventListener

LONGEST_PROBE_WAIT = 30.0  # seconds
MANY_RESOURCES = 3  # with 5xx in a row, which may be the fault of a single request


class GateState(Enum):
    OPEN = "open"
    CLOSED = "closed"
    OPENING = "opening"
    LEFT = "left"


class Passage:
    """One attempt's passage through the gate. Enter it with `async with`, and tell it how the call went.
    Without that it does not affect the gate."""

    __slots__ = ("_gate", "granted", "level")

    def __init__(self, gate: "Gate") -> None:
        self._gate = gate
        self.granted: asyncio.Future[None] | None = None
        self.level = 0

    async def __aenter__(self) -> Self:
        await self._gate.enter(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gate.abandoned(self)

    @property
    def may_call(self) -> bool:
        """Whether the call may still be made: the gate may have closed since."""
        return self._gate.lets(self)

    @property
    def is_probe(self) -> bool:
        """Whether a closed gate has let this one through."""
        return self.level == 1

    def succeeded(self, resource: Hashable) -> None:
        """Marketing Cloud answered."""
        self._gate.succeeded(self, resource)

    def failed(self, resource: Hashable, why: str, *, outage: bool, pause: float = 0.0) -> bool:
        """The call failed, and Marketing Cloud asked for a `pause` (seconds). `outage` tells of a failure
        that is one by its kind. Returns whether it belongs to an outage, so that no attempt is spent."""
        return self._gate.failed(self, resource, why, outage=outage, pause=pause)

    def close(self, why: str, at_least: float = 0.0) -> None:
        """Close the gate, or keep it closed, for at least so many seconds."""
        self._gate.close(why, at_least, passage=self)


class _OpenPassage(Passage):
    """The passage through an open gate, shared by all: it never waits and keeps no state."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return


class Gate:
    """Counts failures in a row, closes on an outage and opens again step by step."""

    def __init__(
        self,
        after: int,
        base: float,
        events: EventListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._after = after
        self._base = base
        self._events = events
        self._clock = clock
        self.state = GateState.OPEN
        self.why = ""  # it is not open
        self.closings = 0
        self._open_passage = _OpenPassage(self)
        self._outages = 0  # in a row
        self._others = 0  # other failures in the same row
        self._resources: set[Hashable] = set()  # of the other failures
        self._closed_at = 0.0
        self._paused = 0.0
        self._probes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # loop time until which Marketing Cloud asked to be left alone
        self._waiting: deque[Passage] = deque()
        self._under_way: set[Passage] = set()  # the probe, or the calls of an opening gate
        self._level = 1
        self._closers: set[Hashable] = set()  # resources whose failure closed the opening gate

    @property
    def is_pausing(self) -> bool:
        """Whether it keeps requests waiting."""
        return self.state in (GateState.CLOSED, GateState.OPENING)

    @property
    def paused(self) -> float:
        """Seconds that it has not been open, all pauses together."""
        return self._paused + (self._clock() - self._closed_at if self.is_pausing else 0.0)

    def passage(self) -> Passage:
        """A passage for one attempt."""
        return self._open_passage if self.state is GateState.OPEN else Passage(self)

    def close(self, why: str, at_least: float = 0.0, *, passage: Passage | None = None) -> None:
        """Close it, or keep it closed, for at least so many seconds."""
        is_current = passage in self._under_way
        if is_current and passage is not None:
            self._under_way.remove(passage)
        if self.state in (GateState.OPEN, GateState.LEFT):
            self._closed_at = self._clock()
            self._shut(why, at_least)
            self._events.gate_closed(why)
        elif self.state is GateState.OPENING and (passage is None or is_current or at_least):
            self._shut(why, at_least)
            self._events.gate_closed_again(why)
        elif self.state is GateState.CLOSED and (is_current or at_least):
            self.why = why
            self._schedule_probe(at_least)

    def leave(self) -> None:
        """The requests that waited have gone back to the queue."""
        if self.is_pausing:
            self._under_way.clear()
            self._events.gate_left(self._end_pause(GateState.LEFT))

    def lets(self, passage: Passage) -> bool:
        """Whether the call of this passage may be made now."""
        return self.state is GateState.OPEN or passage in self._under_way

    async def enter(self, passage: Passage) -> None:
        """Wait until the passage may go through."""
        if self.state is GateState.LEFT:
            self.close(self.why)
            self._schedule_probe(0.0, at_once=True)
        if self.state is GateState.OPEN:
            return
        if self.state is GateState.OPENING and len(self._under_way) < self._level:
            self._grant(passage)
            return
        passage.granted = asyncio.get_running_loop().create_future()
        self._waiting.append(passage)
        if self.state is GateState.CLOSED and self._timer is None and not self._under_way:
            self._schedule_probe(0.0)
        try:
            await passage.granted
        except asyncio.CancelledError:
            self.abandoned(passage)
            raise

    def succeeded(self, passage: Passage, resource: Hashable) -> None:
        """A call succeeded. One that began before the gate closed does not open it."""
        if self.state is GateState.OPEN:
            self._outages = self._others = 0
            if self._resources:
                self._resources.clear()
            return
        if passage not in self._under_way:
            return
        self._under_way.remove(passage)
        self._closers.discard(resource)
        if self.state is GateState.OPENING:
            if passage.level == self._level:
                self._level *= 2
        elif asyncio.get_running_loop().time() < self._not_before:
            self._schedule_probe(0.0, at_once=True)
            return
        else:
            self.state, self._level = GateState.OPENING, 2
            self._events.gate_opening()
        self._forget_cancelled()
        if self._waiting:
            self._let_through()
        else:
            self._open()

    def failed(self, passage: Passage, resource: Hashable, why: str, *, outage: bool, pause: float) -> bool:
        """A call failed. Returns whether that belongs to an outage."""
        if self.state is GateState.OPEN:
            return self._count(resource, why, outage=outage, pause=pause)
        if passage in self._under_way and self.state is GateState.OPENING and resource in self._closers:
            # This resource closed the opening gate before, and others have succeeded since: the fault is its
            # own.
            self.abandoned(passage)
            return False
        if passage in self._under_way:
            if self.state is GateState.OPENING:
                self._closers.add(resource)
            self.close(why, pause, passage=passage)
        return True

    def abandoned(self, passage: Passage) -> None:
        """The passage ended without a result: another one may go."""
        if passage not in self._under_way:
            return
        self._under_way.remove(passage)
        if self.state is GateState.CLOSED:
            self._schedule_probe(0.0, at_once=True)
        else:
            self._let_through()

    def _count(self, resource: Hashable, why: str, *, outage: bool, pause: float) -> bool:
        if outage:
            self._outages += 1
        else:
            self._others += 1
            self._resources.add(resource)
        in_a_row = self._outages + self._others
        are_many = in_a_row >= self._after and len(self._resources) >= MANY_RESOURCES
        if self._outages >= self._after or are_many:
            self.close(why, pause)
            return True
        return False

    def _shut(self, why: str, at_least: float) -> None:
        self.state = GateState.CLOSED
        self.why = why
        self.closings += 1
        self._probes = 0
        self._level = 1
        self._under_way.clear()
        self._schedule_probe(at_least)

    def _open(self) -> None:
        seconds = self._end_pause(GateState.OPEN)
        self._not_before = 0.0
        self.why = ""
        self._under_way.clear()
        self._closers.clear()
        self._outages = self._others = 0
        self._resources.clear()
        self._events.gate_opened(seconds)

    def _end_pause(self, state: GateState) -> float:
        seconds = self._clock() - self._closed_at
        self._paused += seconds
        self.state = state
        self._cancel_timer()
        return seconds

    def _schedule_probe(self, at_least: float, *, at_once: bool = False) -> None:
        """Set the time of the next probe: doubling from the first back-off step, up to 30 s; `at_once` if the
        last one told nothing."""
        self._cancel_timer()
        now = asyncio.get_running_loop().time()
        self._not_before = max(self._not_before, now + at_least)
        if self._under_way:
            return  # the end of that probe sets the time of the next one
        backoff = 0.0
        if not at_once:
            self._probes += 1
            longest = ceiling(self._probes, self._base, LONGEST_PROBE_WAIT)
            backoff = random.uniform(longest / 2, longest)  # noqa: S311
        wait = max(self._not_before - now, backoff)
        self._timer = asyncio.get_running_loop().call_later(wait, self._let_probe_through)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_probe_through(self) -> None:
        self._timer = None
        self._forget_cancelled()
        if self._waiting:
            self._grant(self._waiting.popleft())

    def _let_through(self) -> None:
        self._forget_cancelled()
        while self._waiting and len(self._under_way) < self._level:
            self._grant(self._waiting.popleft())
            self._forget_cancelled()

    def _grant(self, passage: Passage) -> None:
        passage.level = self._level
        self._under_way.add(passage)
        if passage.granted is not None:
            passage.granted.set_result(None)

    def _forget_cancelled(self) -> None:
        while self._waiting and (granted := self._waiting[0].granted) is not None and granted.done():
            self._waiting.popleft()
