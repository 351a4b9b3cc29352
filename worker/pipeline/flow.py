"""The flow to Marketing Cloud: when the next call may go (contract §6). Pure: the clock is given, no asyncio.

    state    | what happens                                | next state
    ---------|---------------------------------------------|------------------------------------------------
    OPEN     | more failures in a row than chance explains | CLOSED
    CLOSED   | the probe fails                             | CLOSED, the next probe after a longer back-off
    CLOSED   | the probe succeeds                          | OPENING with two calls at a time
    OPENING  | a call succeeds, or fails                   | OPENING with twice or half as many at a time
    OPENING  | all may go, or nobody waits                 | OPEN
    CLOSED,  | the deliveries go back to the queue         | UNKNOWN: another worker may have them next
    OPENING  |                                             |
    UNKNOWN  | a request comes                             | CLOSED, with this request as the probe

**An outage is a pause.** Five failures in a row say little where half of all calls fail, and much where none
does. So the gate closes when a row of that length would come by chance once in 100,000 calls, given the share
of failures that is normal at present. After a pause that share is learned anew, and the row that closed the
gate counts. Failures that are normal hold no level down: the rarer a success, the less a failure tells.

**A speed limit is a pace.** A throttled call sets the pace to the rate that was taken lately. From a little
below, the pace rises to that rate and stays near it, then rises faster and faster until a call is throttled
again (as CUBIC does for TCP). Where a throttled call costs all of them a pause, the pace rises more slowly.
Some upstreams answer 503 beyond their limit: the pace is tried on these too, and dropped if slower calls fail
as often.

A worker begins as after an outage, with few calls at a time: TCP's slow start.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum

from worker.events import EventListener
from worker.marketing_cloud.answer import Cause

LONGEST_PROBE_WAIT = 30.0  # seconds
PROBE_GROWTH = 1.3  # of the wait from one probe to the next
MANY_RESOURCES = 3  # with failures that may be the fault of a single request
CHANCE = 1e-5  # that a row of failures was no outage
NORMAL = (0.02, 0.97)  # bounds of the share of failures that is taken for normal
MEMORY = 100  # calls over which that share is averaged
HOPE = 2  # calls taken that are supposed before any is known
FIRST_LEVEL = 16  # calls at a time at the start

# Seconds over which the rate that was taken is measured: longer for a slow pace, so that it is not by chance.
PERIOD, LONGEST_PERIOD, TELLING = 1.0, 3.0, 12
CATCH_UP = 0.01  # seconds of the pace that a late timer makes up for
SLOWEST = 0.5  # calls a second
FIRST_PACE = 5.0  # calls a second, at least, before the limit is known
FIRST_TRIAL = 10.0  # the same where it is only supposed
# Shares of the pace that are kept when a call is throttled before it has reached its top.
LEAST, LEAST_AFTER_PAUSE, MOST = 0.4, 0.7, 0.9
CREPT = 0.97  # of the pace, when it is throttled later
DIP = 0.05  # the share by which the pace begins below the rate that was taken
RISE = 5.0  # seconds in which the pace reaches that rate
FIRST_RISE = 3.0  # the same after the limit was first met
PAUSES = (
    12.0  # times the pause that was asked for, if that is longer: so pauses take a few hundredths of the time
)
LONGEST_RISE = 10.0  # seconds
FORGET = 10.0  # times the known limit: then it holds no more
SUSPICIOUS = 0.3  # share of failures for which the pace is tried
TRIAL_CALLS = 15  # that are made at each pace on trial
TRIALS = 2  # paces that are tried
NEXT_TRIAL = 60.0  # seconds


class FlowState(Enum):
    OPEN = "open"
    CLOSED = "closed"
    OPENING = "opening"
    UNKNOWN = "unknown"


class Call:
    """A call that may go, from `Flow.begin` until it is told how it ended."""

    __slots__ = ("began", "is_probe", "level")

    def __init__(self, began: float, level: float, *, is_probe: bool) -> None:
        self.began = began
        self.level = level
        self.is_probe = is_probe


FREE = Call(-math.inf, math.inf, is_probe=False)  # shared by all while nothing limits the flow


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
        """`after` is the fewest failures that close the gate, `base` the first back-off of probes (seconds),
        `most` the calls at a time beyond which their number is not limited. `limit` (calls a second) and the
        pace are for all workers together, of which this one has `share`."""
        self._clock = clock
        self._events = events
        self._after, self._base, self._most = after, base, most
        self._limit, self._share = limit, share
        self.state = FlowState.OPEN
        self.cause: Cause | None = None  # why the gate is not open
        self.why = ""  # the same in words
        self.answered = 0  # calls, so far
        self._level: float = FIRST_LEVEL  # calls at a time
        self._under_way: set[Call] = set()
        self._is_free = False
        self._closed_at = 0.0
        self._probes = 0
        self._probe_at = 0.0
        self._not_before = 0.0  # until then Marketing Cloud asked to be left alone
        self._calls = self._failures = 0.0  # since the last pause, up to the last call that was taken
        self._outages = self._others = 0  # failures in a row
        self._resources: set[Hashable] = set()  # of the others
        self._next_call = 0.0
        self._began = clock()
        self._taken: deque[float] = deque()  # times of the calls that were answered in the last period
        self._pace = _Pace()

    @property
    def is_pausing(self) -> bool:
        """Whether an outage keeps requests waiting."""
        return self.state in (FlowState.CLOSED, FlowState.OPENING)

    @property
    def pace(self) -> float | None:
        """Calls a second that this worker may make because of a speed limit, None without one."""
        rate = self._pace.rate(self._clock())
        return rate * self._share() if rate < math.inf else None

    # Before a call

    def wait(self) -> float | None:
        """Seconds until the next call may go. None: not before one ends that is under way."""
        if self._is_free:
            return 0.0
        if self.state is FlowState.CLOSED:
            return None if self._under_way else max(0.0, self._probe_at - self._clock())
        if len(self._under_way) >= self._level:
            return None
        return max(0.0, self._next_call - self._clock())

    def begin(self) -> Call:
        """A call goes. Tell how it ended by `taken`, `failed`, `throttled`, `close` or `abandoned`."""
        if self._is_free:
            return FREE
        now = self._clock()
        if self.state is FlowState.UNKNOWN:
            self._closed_at = now
            self.state = FlowState.CLOSED
            self._events.gate_closed(self.why)
        call = Call(now, self._level, is_probe=self.state is FlowState.CLOSED)
        self._under_way.add(call)
        rate = self._rate(now)
        if rate < math.inf:
            self._next_call = max(self._next_call, now - CATCH_UP) + 1 / rate
        return call

    def allows(self, call: Call) -> bool:
        """Whether a call that was let go may still be made: the gate may have closed since."""
        return self.state is FlowState.OPEN or call in self._under_way

    # After a call

    def taken(self, call: Call) -> None:
        """Marketing Cloud answered. A call that began before the gate closed does not open it."""
        now = self._clock()
        self.answered += 1
        self._taken.append(now)
        while now - self._taken[0] > LONGEST_PERIOD:
            self._taken.popleft()
        self._end_row()
        if self._is_free or self._is_stale(call):
            return
        self._under_way.discard(call)
        self._pace.ended(call, failed=False)
        self._pace.rise_if_proven(now)
        if self.state is FlowState.CLOSED:
            if now < self._not_before:
                self._probe_at = self._not_before
                return
            self.state, self._level = FlowState.OPENING, 2
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
        if self._is_stale(call):
            return True
        self._under_way.discard(call)
        if self.state is FlowState.CLOSED:
            self.cause, self.why = cause, why
            self._probe_later(pause)
            return True
        if outage:
            self._outages += 1
        else:
            self._others += 1
            self._resources.add(resource)
        row = self._outages + (self._others if len(self._resources) >= MANY_RESOURCES else 0)
        if row >= self._needed:
            self._shut(cause, why, pause)
            return True
        normal = max(self._normal, NORMAL[0])
        self._level = max(2, self._level * 0.5 ** min(1.0, (1 / normal - 1) ** 2))
        if cause is Cause.NOT_AVAILABLE:
            self._try_pace(call, why)
        return False

    def throttled(self, call: Call, why: str, pause: float) -> None:
        """Marketing Cloud took the call for one too many, and asked for a pause of all (seconds)."""
        now = self._clock()
        self._next_call = max(self._next_call, now + pause)
        if self._is_stale(call):
            return
        self._under_way.discard(call)
        if self.state is FlowState.CLOSED:
            self._probe_later(pause)
        elif self._pace.is_told_by(call, now, pause):
            self._pace.on_trial = None
            self._lower(now, why, pause)

    def close(self, cause: Cause, why: str, pause: float = 0.0, call: Call | None = None) -> None:
        """Close the gate at once, or keep it closed, for at least so many seconds."""
        is_current = call in self._under_way
        if call is not None:
            self._under_way.discard(call)
        if self.state in (FlowState.OPEN, FlowState.UNKNOWN) or (
            self.state is FlowState.OPENING and (call is None or is_current or pause)
        ):
            self._shut(cause, why, pause)
        elif self.state is FlowState.CLOSED and (is_current or pause):
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

    # Inside

    @property
    def _normal(self) -> float:
        """The share of failures."""
        return self._failures / (self._calls + HOPE)

    @property
    def _needed(self) -> int:
        """Failures in a row that are no chance."""
        normal = min(max(self._normal, NORMAL[0]), NORMAL[1])
        return max(self._after, math.ceil(math.log(CHANCE) / math.log(normal)))

    def _is_stale(self, call: Call) -> bool:
        return self.state is not FlowState.OPEN and call not in self._under_way

    def _end_row(self) -> None:
        row = self._outages + self._others
        kept = (1 - 1 / MEMORY) ** (row + 1)
        self._calls = self._calls * kept + row + 1
        self._failures = self._failures * kept + row
        if row:
            self._outages = self._others = 0
            self._resources.clear()

    def _shut(self, cause: Cause, why: str, pause: float) -> None:
        now = self._clock()
        is_again = self.state is FlowState.OPENING
        if not is_again:
            self._closed_at = now
        self.state, self.cause, self.why = FlowState.CLOSED, cause, why
        self._is_free = False
        self._under_way.clear()
        self._calls = self._failures = 0.0
        self._probes = 0
        self._probe_later(pause)
        (self._events.gate_closed_again if is_again else self._events.gate_closed)(why)

    def _open(self) -> None:
        was_pausing, self.state = self.is_pausing, FlowState.OPEN
        self._level, self._not_before = math.inf, 0.0
        self._is_free = self._limit is None and self._pace.top is None
        if was_pausing:
            self.cause, self.why = None, ""
            self._events.gate_opened(self._clock() - self._closed_at)

    def _probe_later(self, pause: float) -> None:
        """Set the time of the next probe: doubling from the first back-off step, up to 30 s."""
        now = self._clock()
        self._probes += 1
        longest = min(LONGEST_PROBE_WAIT, self._base * PROBE_GROWTH ** min(self._probes - 1, 60))
        self._not_before = max(self._not_before, now + pause)
        self._probe_at = max(self._not_before, now + random.uniform(longest / 2, longest))  # noqa: S311

    def _rate(self, now: float) -> float:
        """Calls a second that may be made."""
        rate = self._pace.rate(now)
        if rate < math.inf and self._pace.is_forgotten(now):
            self._end_pace()
            self._level = FIRST_LEVEL
            rate = math.inf
        return min(rate, math.inf if self._limit is None else self._limit) * self._share()

    def _try_pace(self, call: Call, why: str) -> None:
        """A call failed as beyond some speed limits. Try whether slower calls fail less often."""
        now, pace = self._clock(), self._pace
        if pace.top is None:
            if self._normal >= SUSPICIOUS and now >= max(pace.next_trial, self._began + PERIOD):
                pace.on_trial, pace.trials, pace.is_proven = self._normal, 0, False
                self._lower(now, why, 0.0)
            return
        pace.ended(call, failed=True)
        if pace.on_trial is None or pace.calls < TRIAL_CALLS or call.began < pace.changed:
            return
        share = pace.failures / pace.calls
        pace.on_trial = max(pace.on_trial, share)
        is_vain = share > pace.on_trial / 2 and not pace.is_rising
        pace.trials = pace.trials + 1 if is_vain else 0
        if pace.trials < TRIALS:
            self._lower(now, why, 0.0)
        else:
            pace.next_trial = now + NEXT_TRIAL
            self._end_pace()

    def _lower(self, now: float, why: str, pause: float) -> None:
        is_first = self._pace.top is None
        span = min(max(PERIOD, TELLING / self._pace.rate(now)), LONGEST_PERIOD)
        taken = sum(now - at <= span for at in self._taken)
        lately = taken / max(0.25, min(span, now - self._began))
        self._pace.lower(now, lately / self._share(), pause)
        self._is_free = False
        if is_first:
            self._next_call = max(self._next_call, now)
            self._events.pace_began(self._pace.rate(now) * self._share(), why)

    def _end_pace(self) -> None:
        self._pace.top, self._pace.changed = None, -math.inf
        self._events.pace_ended()


class _Pace:
    """The rate of calls that a speed limit allows, as far as it is known. `on_trial` is the share of failures
    before a limit that is only supposed."""

    def __init__(self) -> None:
        self.top: float | None = None  # calls a second
        self.changed = -math.inf
        self.on_trial: float | None = None
        self.trials = 0
        self.is_proven = False
        self.next_trial = -math.inf
        self.calls = self.failures = 0  # since the last change
        self._rise: float | None = None  # seconds to the top; None while the limit is not known yet

    def rate(self, now: float) -> float:
        if self.top is None:
            return math.inf
        age = max(0.0, now - self.changed)
        if self._rise is None:
            return self.top * 2 ** min(age, 60.0)
        return self.top * (1 + DIP * (age / self._rise - 1) ** 3)

    def is_forgotten(self, now: float) -> bool:
        if self.top is None:
            return False
        return now - self.changed > LONGEST_RISE if self.is_rising else self.rate(now) > FORGET * self.top

    @property
    def is_rising(self) -> bool:
        """Whether it grows quickly, because the limit is not known yet."""
        return self._rise is None

    def is_told_by(self, call: Call, now: float, pause: float) -> bool:
        """Whether a throttled call tells something new: it went at this pace, which was tried for a while."""
        return call.began >= self.changed and (pause > 0 or now - self.changed >= PERIOD)

    def ended(self, call: Call, *, failed: bool) -> None:
        if call.began >= self.changed:
            self.calls += 1
            self.failures += failed

    def rise_if_proven(self, now: float) -> None:
        """Where slower calls fail less often, the limit that was supposed is one: find it quickly."""
        if self.on_trial is None or self.is_proven or self.calls < TRIAL_CALLS:
            return
        if self.failures <= self.on_trial / 2 * self.calls:
            self.is_proven, self.trials = True, 0
            self.top, self._rise, self.changed = self.rate(now), None, now
            self.calls = self.failures = 0

    def lower(self, now: float, lately: float, pause: float) -> None:
        """A call was throttled while so many a second were taken."""
        if self.top is None:
            self.top = max(FIRST_PACE if self.on_trial is None else FIRST_TRIAL, lately)
            self._rise = None if self.on_trial is None else RISE
        else:
            rate, age = self.rate(now), max(0.0, now - self.changed)
            if self._rise is not None and age >= self._rise:
                self.top = CREPT * rate
            else:
                least = LEAST_AFTER_PAUSE if pause else LEAST
                self.top = max(SLOWEST, min(MOST * rate, max(lately, least * rate)))
            longest = max(RISE, PAUSES * pause)
            self._rise = FIRST_RISE if self._rise is None else min(2 * self._rise, longest)
        self.changed = now + pause
        self.calls = self.failures = 0
