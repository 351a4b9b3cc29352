"""The flow to Marketing Cloud: when the next call may go (contract §6). Pure: the clock is given, no asyncio.

    state    | what happens                                | next state
    ---------|---------------------------------------------|------------------------------------------------
    OPEN     | more failures in a row than chance explains | CLOSED
    CLOSED   | the probe fails                             | CLOSED, the next probe after a longer wait
    CLOSED   | the probe succeeds                          | OPENING with two calls at a time
    OPENING  | a call succeeds, or fails                   | OPENING with twice or half as many at a time
    OPENING  | all may go, or no request waits             | OPEN
    CLOSED,  | the deliveries go back to the queue         | UNKNOWN: another worker may have them next
    OPENING  |                                             |
    UNKNOWN  | a request comes                             | CLOSED, with this request as the probe

**An outage is a pause.** Five failures in a row say little where half of all calls fail, and much where none
does. So the gate closes when a row of that length would come by chance once in 100,000 calls, given the share
of failures that is normal at present. After a pause that share is learned anew; the row that closed the gate
counts. A worker begins with few calls at a time, as TCP's slow start does.

**A speed limit is a pace**: see pace.py.
"""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable
from enum import Enum

from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.pipeline.pace import LEAST, PERIOD, TELLING, Call, Pace

LONGEST_PROBE_WAIT = 30.0  # seconds
# The wait for the next probe is this part of the pause so far. A pause outlasts its outage by no more.
PROBE_SHARE = 1 / 4
MANY_RESOURCES = 3  # with failures that may be the fault of a single request
CHANCE = 1e-5  # that a row of failures is no outage
MEMORY = 100  # calls over which the normal share of failures is averaged
PRIOR = 2  # calls taken that are supposed before any is known
FIRST, FEW = 16, 2  # calls at a time at the start, and after a pause
CATCH_UP = 0.05  # seconds of the pace that a late timer makes up for
EARLY = 0.25  # seconds, at least, over which the very first rate is measured

SUSPICIOUS = 0.3  # share of calls that fail, for which a pace is tried
NEXT_TRIAL = 30.0  # seconds


class FlowState(Enum):
    OPEN = "open"
    CLOSED = "closed"
    OPENING = "opening"
    UNKNOWN = "unknown"


class Flow:
    """Decides when the next call may go, by how the calls before it ended."""

    def __init__(
        self,
        clock: Callable[[], float],
        events: EventListener,
        *,
        after: int,
        base: float,
        most: int,
        limit: float | None = None,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`after` is the fewest failures that close the gate, `base` the first wait for a probe (seconds),
        `most` the calls at a time beyond which their number is not limited. `limit` (calls a second) and the
        pace are for all workers together, of which this one has `share`."""
        self._clock = clock
        self._events = events
        self._after, self._base, self._most = after, base, most
        self._limit, self._share = math.inf if limit is None else limit, share
        self.state = FlowState.OPEN
        self.cause: Cause | None = None  # why the gate is not open
        self.why = ""  # the same in words
        self.answered = 0  # calls, so far
        self._level: float = FIRST  # calls at a time
        self._under_way: set[Call] = set()  # without those from before the gate closed
        self._closed_at = 0.0
        self._probe_at = 0.0
        self._not_before = 0.0  # until then Marketing Cloud asked to be left alone
        self._calls = self._failures = 0.0  # since the last pause, up to the last call that was taken
        self._outages = 0  # failures in a row that are outages by their kind
        self._others: Counter[Hashable] = Counter()  # and others, by resource
        self._next_call = 0.0
        self._taken: deque[float] = deque()  # times of the calls that were taken in the last period
        self._pace: Pace | None = None
        self._next_trial = -math.inf

    @property
    def is_pausing(self) -> bool:
        """Whether an outage keeps requests waiting."""
        return self.state in (FlowState.CLOSED, FlowState.OPENING)

    @property
    def paused_for(self) -> float:
        """Seconds of the present pause, 0 without one."""
        return self._clock() - self._closed_at if self.is_pausing else 0.0

    @property
    def pace(self) -> float | None:
        """Calls a second that this worker may make because of a speed limit, None without one."""
        return None if self._pace is None else self._pace.rate(self._clock()) * self._share()

    # Before a call

    def wait(self) -> float | None:
        """Seconds until the next call may go. None: not before one ends that is under way."""
        if self.state is FlowState.CLOSED:
            return None if self._under_way else max(0.0, self._probe_at - self._clock())
        if len(self._under_way) >= self._level:
            return None
        return max(0.0, self._next_call - self._clock())

    def begin(self) -> Call:
        """A call goes. Tell how it ended by `taken`, `failed`, `throttled`, `close` or `abandoned`."""
        now = self._clock()
        if self.state is FlowState.UNKNOWN:
            self._closed_at = now
            self.state = FlowState.CLOSED
            self._events.gate_closed(self.why)
        call = Call(now, self._level, self.state is FlowState.CLOSED)
        self._under_way.add(call)
        if self._pace is not None and self._pace.is_forgotten(now):
            self._end_pace()
            self._level = FIRST
        rate = self._limit
        if self._pace is not None:
            self._pace.idle += max(0.0, now - self._next_call - PERIOD)
            rate = min(rate, self._pace.rate(now))
        if rate < math.inf:
            self._next_call = max(self._next_call, now - CATCH_UP) + 1 / (rate * self._share())
        return call

    def allows(self, call: Call) -> bool:
        """Whether a call that was let go may still be made: the gate may have closed since."""
        return call in self._under_way

    # After a call

    def taken(self, call: Call) -> None:
        """Marketing Cloud answered. A call that began before the gate closed does not open it."""
        now = self._clock()
        self.answered += 1
        self._taken.append(now)
        while now - self._taken[0] > PERIOD:
            self._taken.popleft()
        self._end_row()
        if call not in self._under_way:
            return
        self._under_way.remove(call)
        self._learn(call, is_taken=True)
        if self.state is FlowState.CLOSED:
            if now < self._not_before:
                self._probe_at = self._not_before
                return
            self.state, self._level = FlowState.OPENING, FEW
            if self._pace is not None:
                self._pace.restart(now)
            self._events.gate_opening()
        elif call.level >= self._level:
            self._level *= 2
        if self._level >= self._most:
            self._open()

    def failed(
        self, call: Call, resource: Hashable, cause: Cause, why: str, *, outage: bool, pause: float = 0.0
    ) -> bool:
        """The call failed, and Marketing Cloud asked for a `pause` (seconds). `outage`: the failure is one by
        its kind, and not perhaps the fault of this one request. Returns whether it belongs to an outage."""
        if call not in self._under_way:
            return True
        self._under_way.remove(call)
        if self.state is FlowState.CLOSED:
            self.cause, self.why = cause, why
            self._probe_later(pause)
            return True
        if outage:
            self._outages += 1
        else:
            self._others[resource] += 1
        if cause is Cause.NOT_AVAILABLE:
            self._try_pace(call, why)
        row = self._outages + (self._others.total() if len(self._others) >= MANY_RESOURCES else 0)
        if row >= self._needed and not self._is_beyond_limit:
            self._shut(cause, why, pause)
            return True
        # Where most calls fail, a failure takes back less than a success adds, or the level never rises.
        normal = max(self._normal, 0.5)
        self._level = max(FEW, self._level / 2 ** (1 / normal - 1) ** 2)
        return False

    def throttled(self, call: Call, why: str, pause: float) -> None:
        """Marketing Cloud took the call for one too many, and asked for a pause of all (seconds)."""
        now = self._clock()
        self._next_call = max(self._next_call, now + pause)
        if call not in self._under_way:
            return
        self._under_way.remove(call)
        if self.state is FlowState.CLOSED:
            self._probe_later(pause)
            return
        self._learn(call, is_taken=False)
        if self._pace is None:
            self._begin_pace(now + pause, why)
        else:
            self._pace.lower(call, now, pause, self._share())

    def close(self, cause: Cause, why: str, pause: float = 0.0, call: Call | None = None) -> None:
        """Close the gate at once, or keep it closed, for at least so many seconds. A `call` from before the
        gate closed does so only if it was asked for a pause."""
        is_current = call is None or call in self._under_way
        if call is not None:
            self._under_way.discard(call)
        if not is_current and not pause:
            return
        if self.state is not FlowState.CLOSED:
            self._shut(cause, why, pause)
        elif call is not None:
            self.cause, self.why = cause, why
            self._probe_later(pause)

    def abandoned(self, call: Call) -> None:
        """The call was not made, or its end is not known: another one may go."""
        if call in self._under_way:
            self._under_way.remove(call)
            if self.state is FlowState.CLOSED:
                self._probe_at = max(self._not_before, self._clock())

    def nobody_waits(self) -> None:
        """No request waits for its turn."""
        if self.state is FlowState.OPENING:
            self._open()

    def leave(self) -> None:
        """The requests that waited have gone back to the queue."""
        if self.is_pausing:
            self.state = FlowState.UNKNOWN
            self._under_way.clear()
            self._events.gate_left(self._clock() - self._closed_at)

    # The gate

    @property
    def _normal(self) -> float:
        """The share of failures that is normal."""
        return self._failures / (self._calls + PRIOR)

    @property
    def _needed(self) -> int:
        """Failures in a row that are no chance."""
        normal = self._normal
        return max(self._after, math.ceil(math.log(CHANCE) / math.log(normal))) if normal else self._after

    def _end_row(self) -> None:
        row = self._outages + self._others.total()
        kept = (1 - 1 / MEMORY) ** (row + 1)
        self._calls = self._calls * kept + row + 1
        self._failures = self._failures * kept + row
        if row:
            self._outages = 0
            self._others.clear()

    def _shut(self, cause: Cause, why: str, pause: float) -> None:
        is_again = self.state is FlowState.OPENING
        if not is_again:
            self._closed_at = self._clock()
        self.state, self.cause, self.why = FlowState.CLOSED, cause, why
        self._under_way.clear()
        self._calls = self._failures = 0.0
        self._probe_later(pause)
        (self._events.gate_closed_again if is_again else self._events.gate_closed)(why)

    def _open(self) -> None:
        was_pausing, self.state = self.is_pausing, FlowState.OPEN
        self._level, self._not_before = math.inf, 0.0
        if was_pausing:
            self.cause, self.why = None, ""
            self._events.gate_opened(self._clock() - self._closed_at)

    def _probe_later(self, pause: float) -> None:
        now = self._clock()
        longest = min(max(self._base, PROBE_SHARE * (now - self._closed_at)), LONGEST_PROBE_WAIT)
        self._not_before = max(self._not_before, now + pause)
        self._probe_at = max(self._not_before, now + random.uniform(longest / 2, longest))  # noqa: S311

    # The pace

    @property
    def _half_of_lately(self) -> float:
        """Half of the rate of calls of all workers that was taken lately."""
        now = self._clock()
        while self._taken and now - self._taken[0] > PERIOD:
            self._taken.popleft()
        seconds = max(EARLY, now - self._taken[0]) if self._taken else EARLY
        return LEAST * max(1, len(self._taken)) / seconds / self._share()

    def _learn(self, call: Call, *, is_taken: bool) -> None:
        pace = self._pace
        if pace is not None:
            pace.ended(call, self._clock(), is_taken=is_taken)
            if is_taken:
                pace.limit = max(pace.limit, self._half_of_lately)

    def _begin_pace(self, since: float, why: str, trial: float | None = None) -> None:
        """The first call was throttled, or one failed as if it were: then a `trial` of a pace begins."""
        self._pace = Pace(since, self._half_of_lately, trial)
        self._next_call = max(self._next_call, self._clock())
        self._events.pace_began(self._pace.limit * self._share(), why)

    def _end_pace(self) -> None:
        self._pace, self._next_call = None, 0.0
        self._events.pace_ended()

    @property
    def _is_beyond_limit(self) -> bool:
        """Whether a row of failures is explained by a speed limit of an upstream that takes calls."""
        is_supposed = self._pace is not None and self._pace.trial is not None and self._pace.is_proven
        return is_supposed and bool(self._taken) and self._clock() - self._taken[-1] < PERIOD

    def _try_pace(self, call: Call, why: str) -> None:
        """A call failed as beyond some speed limits. Try whether slower calls fail less often."""
        now, pace, normal = self._clock(), self._pace, self._normal
        if pace is None:
            if normal >= SUSPICIOUS and self._calls >= TELLING and now >= self._next_trial:
                self._begin_pace(now + PERIOD, why, normal)
        elif pace.trial is not None:
            self._learn(call, is_taken=False)
            if pace.is_refuted:
                self._next_trial = now + NEXT_TRIAL
                self._end_pace()
            elif pace.is_proven:
                pace.lower(call, now, 0.0, self._share())
