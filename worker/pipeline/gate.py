"""The gate: an outage of Marketing Cloud is a pause, never a dead letter (contract §6).

Open, it costs a look at a flag. Closed, requests wait at it; one at a time is let through as a probe,
each time another one, so that a request that always fails cannot keep it shut. Where the deliveries go
back to the queue while it is closed, another worker may have them next: then nothing is known until a
request comes again, which is a probe.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Hashable

from worker.events import EventListener

LONGEST_PROBE_WAIT = 30.0  # seconds
MANY_RESOURCES = 3  # with 5xx in a row that may be the requests' own fault


class Gate:
    """Counts failures in a row and closes on an outage."""

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
        self._outages = 0
        self._others = 0
        self._resources: set[Hashable] = set()
        self._closed_at: float | None = None
        self._paused = 0.0
        self._probes = 0
        self._probing = False
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0  # loop time until which Marketing Cloud asked to be left alone
        self._is_unsure = False
        self.why = ""
        self.successes = 0  # so far

    @property
    def is_closed(self) -> bool:
        """Whether a request must `enter` before it calls."""
        return self._closed_at is not None or self._is_unsure

    @property
    def is_pausing(self) -> bool:
        """Whether it keeps requests waiting."""
        return self._closed_at is not None

    @property
    def paused(self) -> float:
        """Seconds that it has been closed, all pauses together."""
        return self._paused + (0.0 if self._closed_at is None else self._clock() - self._closed_at)

    async def enter(self) -> bool:
        """Wait while it is closed. True where the caller is the probe: it then must end in one of
        `succeeded`, `failed` or `abandoned`."""
        if not self.is_closed:
            return False
        if self._is_unsure:
            self.close(self.why)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            if self._timer is None and not self._probing:
                self._schedule(0.0)
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.result():
                self.abandoned()
            raise

    def succeeded(self, *, probe: bool = True) -> None:
        """Marketing Cloud answered: the row of failures is broken, and a closed gate opens for its probe. A
        call that was on its way when the gate closed does not open it: it would cut short a pause that
        Marketing Cloud asked for."""
        self.successes += 1
        self._outages = self._others = 0
        if self._resources:
            self._resources.clear()
        if self._closed_at is None or not probe:
            return
        if asyncio.get_running_loop().time() < self._not_before:
            self.abandoned()
        else:
            self._open()

    def failed(self, *, outage: bool, resource: Hashable, pause: float, why: str, probe: bool) -> bool:
        """A call failed, and Marketing Cloud asked for a `pause` (seconds). True where that belongs to an
        outage, so that no attempt is spent."""
        if self.is_closed:
            if probe:
                self._probing = False
                self._schedule(pause)
            return True
        if outage:
            self._outages += 1
        else:
            self._others += 1
            self._resources.add(resource)
        together = self._outages + self._others
        if self._outages >= self._after or (
            together >= self._after and len(self._resources) >= MANY_RESOURCES
        ):
            self.close(why, pause)
            return True
        return False

    def close(self, why: str, at_least: float = 0.0, *, probe: bool = False) -> None:
        """Close it now, or keep it closed, for `at_least` so many seconds."""
        if probe:
            self._probing = False
        if self._closed_at is None:
            self._closed_at = self._clock()
            self._is_unsure = False
            self._probes = 0
            self.why = why
            self._events.gate_closed(why)
            self._schedule(at_least)
        elif probe or at_least:
            self._schedule(at_least)

    def abandoned(self) -> None:
        """The probe's request went away before its call ended; another one may go."""
        self._probing = False
        if self._closed_at is not None:
            self._schedule(0.0, at_once=True)

    def rest(self) -> None:
        """The requests that waited have gone back to the queue."""
        if self._closed_at is not None:
            self._events.gate_left(self._end_pause())
            self._is_unsure = True

    def _end_pause(self) -> float:
        assert self._closed_at is not None
        seconds = self._clock() - self._closed_at
        self._paused += seconds
        self._closed_at = None
        self._probing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return seconds

    def _open(self) -> None:
        seconds = self._end_pause()
        self._not_before = 0.0
        self.why = ""
        self._events.gate_opened(seconds)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(False)

    def _schedule(self, at_least: float, *, at_once: bool = False) -> None:
        """Set the time of the next probe: doubling from the first back-off step, up to 30 s; `at_once` where
        the last one told nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = asyncio.get_running_loop().time()
        self._not_before = max(self._not_before, now + at_least)
        if self._probing:
            return  # the end of that probe sets the time of the next one
        ceiling = min(LONGEST_PROBE_WAIT, self._base * 2 ** min(self._probes, 20))
        if not at_once:
            self._probes += 1
        backoff = 0.0 if at_once else random.uniform(ceiling / 2, ceiling)  # noqa: S311
        wait = max(self._not_before - now, backoff)
        self._timer = asyncio.get_running_loop().call_later(wait, self._let_one_through)

    def _let_one_through(self) -> None:
        self._timer = None
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._probing = True
                waiter.set_result(True)
                return
