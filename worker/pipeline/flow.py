"""The flow of calls to Marketing Cloud: when the next one may start (contract §6). No I/O and no asyncio; the
clock is a parameter.

    state    | what happens                                | next state
    ---------|---------------------------------------------|------------------------------------------------
    OPEN     | more failures in a row than chance explains | CLOSED
    CLOSED   | the probe fails                             | CLOSED, the next probe after a longer wait
    CLOSED   | the probe succeeds                          | OPENING with two concurrent calls
    OPENING  | a call succeeds, or fails                   | OPENING with twice or half the concurrency
    OPENING  | no limit is needed, or no request waits     | OPEN
    CLOSED,  | the deliveries are requeued                 | UNKNOWN: another worker may receive them
    OPENING  |                                             |
    UNKNOWN  | a request arrives                           | CLOSED, with this request as the probe

**An outage is a pause.** If half of all calls fail, five failures in a row mean little; if none fails, they
mean much. So the gate closes when the normal share of failures would produce such a row once in 100,000
calls. After a pause the normal share is measured again; the failures that closed the gate count. A worker
starts with few concurrent calls, as TCP's slow start does.

**A speed limit is a pace**: see pace.py."""

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable
from enum import Enum

from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.pipeline.pace import LEAST, PERIOD, TELLING, Call, Pace

LONGEST_PROBE_WAIT = 30.0  # seconds
# The wait for the next probe, as a share of the pause so far: a pause outlasts its outage by no more than
# that.
PROBE_SHARE = 1 / 4
MANY_RESOURCES = 3  # that must fail before failures that one request may have caused count
CHANCE = 1e-5  # probability that a row of failures is not an outage
MEMORY = 100  # calls over which the normal share of failures is averaged
PRIOR = 2  # successful calls that are assumed at the start
FIRST, FEW = 16, 2  # concurrent calls at the start, and after a pause
CATCH_UP = 0.05  # seconds of delay of a timer that the pace makes up for
EARLY = 0.25  # seconds; the shortest time over which the first rate is measured

SUSPICIOUS = 0.3  # share of failed calls from which a pace is tried
NEXT_TRIAL = 30.0  # seconds between trials


class FlowState(Enum):
    OPEN = "open"
    CLOSED = "closed"
    OPENING = "opening"
    UNKNOWN = "unknown"


class Flow:
    """Decides when the next call may start, from the results of earlier calls."""

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
        `most` the concurrency from which it is no longer limited. `limit` (calls per second) and the pace
        apply to all workers together; this worker may use `share` of them."""
        self._clock = clock
        self._events = events
        self._after, self._base, self._most = after, base, most
        self._limit, self._share = math.inf if limit is None else limit, share
        self.state = FlowState.OPEN
        self.cause: Cause | None = None  # why the gate is not open
        self.why = ""  # the cause as text
        self.answered = 0  # calls that Marketing Cloud has answered
        self._level: float = FIRST  # allowed concurrent calls
        self._in_flight: set[Call] = set()  # without those from before the gate closed
        self._closed_at = 0.0
        self._probe_at = 0.0
        self._not_before = 0.0  # end of the pause that Marketing Cloud asked for
        self._calls = self._failures = 0.0  # since the last pause, up to the last success; decaying
        self._outages = 0  # consecutive failures of the outage class
        self._others: Counter[Hashable] = Counter()  # other consecutive failures, by resource
        self._next_call = 0.0
        self._accepted: deque[float] = deque()  # times of the successful calls of the last period
        self._pace: Pace | None = None
        self._next_trial = -math.inf

    @property
    def is_pausing(self) -> bool:
        """Whether requests wait because of an outage."""
        return self.state in (FlowState.CLOSED, FlowState.OPENING)

    @property
    def paused_for(self) -> float:
        """Seconds since the present pause began, 0 without one."""
        return self._clock() - self._closed_at if self.is_pausing else 0.0

    @property
    def pace(self) -> float | None:
        """Calls per second that a speed limit allows this worker, None without one."""
        return None if self._pace is None else self._pace.rate(self._clock()) * self._share()

    # Before a call

    def wait(self) -> float | None:
        """Seconds until the next call may start; None if a call in flight must end first."""
        if self.state is FlowState.CLOSED:
            return None if self._in_flight else max(0.0, self._probe_at - self._clock())
        if len(self._in_flight) >= self._level:
            return None
        return max(0.0, self._next_call - self._clock())

    def begin(self) -> Call:
        """Start a call. Report its end with `accepted`, `failed`, `throttled`, `close` or `abandoned`."""
        now = self._clock()
        if self.state is FlowState.UNKNOWN:
            self._closed_at = now
            self.state = FlowState.CLOSED
            self._events.gate_closed(self.why)
        call = Call(now, self._level, self.state is FlowState.CLOSED)
        self._in_flight.add(call)
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
        """Whether a started call may still be made: the gate may have closed since."""
        return call in self._in_flight

    # After a call

    def accepted(self, call: Call) -> None:
        """The call has a final answer. A call that began before the gate closed does not open it."""
        now = self._clock()
        self.answered += 1
        self._accepted.append(now)
        while now - self._accepted[0] > PERIOD:
            self._accepted.popleft()
        self._end_row()
        if call not in self._in_flight:
            return
        self._in_flight.remove(call)
        self._learn(call, is_accepted=True)
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
        """The call failed, and Marketing Cloud asked for a `pause` (seconds). `outage`: the failure is of the
        outage class, so this request did not cause it. Returns whether it belongs to an outage."""
        if call not in self._in_flight:
            return True
        self._in_flight.remove(call)
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
        # If most calls fail, a failure must lower the level by less than a success raises it.
        normal = max(self._normal, 0.5)
        self._level = max(FEW, self._level / 2 ** (1 / normal - 1) ** 2)
        return False

    def throttled(self, call: Call, why: str, pause: float) -> None:
        """The call exceeded a speed limit. Marketing Cloud asked all calls to pause (seconds)."""
        now = self._clock()
        self._next_call = max(self._next_call, now + pause)
        if call not in self._in_flight:
            return
        self._in_flight.remove(call)
        if self.state is FlowState.CLOSED:
            self._probe_later(pause)
            return
        self._learn(call, is_accepted=False)
        if self._pace is None:
            self._begin_pace(now + pause, why)
        else:
            self._pace.lower(call, now, pause, self._share())

    def close(self, cause: Cause, why: str, pause: float = 0.0, call: Call | None = None) -> None:
        """Close the gate, or keep it closed, for at least `pause` seconds. A `call` from before the gate
        closed counts only with a pause."""
        is_current = call is None or call in self._in_flight
        if call is not None:
            self._in_flight.discard(call)
        if not is_current and not pause:
            return
        if self.state is not FlowState.CLOSED:
            self._shut(cause, why, pause)
        elif call is not None:
            self.cause, self.why = cause, why
            self._probe_later(pause)

    def abandoned(self, call: Call) -> None:
        """The call was not made, or its result is unknown: another one may start."""
        if call in self._in_flight:
            self._in_flight.remove(call)
            if self.state is FlowState.CLOSED:
                self._probe_at = max(self._not_before, self._clock())

    def no_request_waits(self) -> None:
        """No request waits for a call: the gate needs no further opening."""
        if self.state is FlowState.OPENING:
            self._open()

    def reset(self) -> None:
        """The waiting requests are requeued: whether the outage continues is unknown."""
        if self.is_pausing:
            self.state = FlowState.UNKNOWN
            self._in_flight.clear()
            self._events.gate_reset(self._clock() - self._closed_at)

    # The gate

    @property
    def _normal(self) -> float:
        """The normal share of failures."""
        return self._failures / (self._calls + PRIOR)

    @property
    def _needed(self) -> int:
        """Failures in a row that close the gate."""
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
        self._in_flight.clear()
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
    def _half_of_recent(self) -> float:
        """Half of the recent rate of successful calls of all workers."""
        now = self._clock()
        while self._accepted and now - self._accepted[0] > PERIOD:
            self._accepted.popleft()
        seconds = max(EARLY, now - self._accepted[0]) if self._accepted else EARLY
        return LEAST * max(1, len(self._accepted)) / seconds / self._share()

    def _learn(self, call: Call, *, is_accepted: bool) -> None:
        pace = self._pace
        if pace is not None:
            pace.ended(call, self._clock(), is_accepted=is_accepted)
            if is_accepted:
                pace.limit = max(pace.limit, self._half_of_recent)

    def _begin_pace(self, since: float, why: str, trial: float | None = None) -> None:
        """Start a pace after the first throttled call, or as a `trial` if calls fail as if throttled."""
        self._pace = Pace(since, self._half_of_recent, trial)
        self._next_call = max(self._next_call, self._clock())
        self._events.pace_began(self._pace.limit * self._share(), why)

    def _end_pace(self) -> None:
        self._pace, self._next_call = None, 0.0
        self._events.pace_ended()

    @property
    def _is_beyond_limit(self) -> bool:
        """Whether a speed limit explains a row of failures, because calls still succeed."""
        is_inferred = self._pace is not None and self._pace.trial is not None and self._pace.is_proven
        return is_inferred and bool(self._accepted) and self._clock() - self._accepted[-1] < PERIOD

    def _try_pace(self, call: Call, why: str) -> None:
        """A call failed with a status that some upstreams use for a speed limit: try a slower pace."""
        now, pace, normal = self._clock(), self._pace, self._normal
        if pace is None:
            if normal >= SUSPICIOUS and self._calls >= TELLING and now >= self._next_trial:
                self._begin_pace(now + PERIOD, why, normal)
        elif pace.trial is not None:
            self._learn(call, is_accepted=False)
            if pace.is_refuted:
                self._next_trial = now + NEXT_TRIAL
                self._end_pace()
            elif pace.is_proven:
                pace.lower(call, now, 0.0, self._share())
