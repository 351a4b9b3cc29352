"""The pace of calls where Marketing Cloud has a speed limit (contract §6). Pure: the clock is given.

The first throttled call sets the pace to half of what was taken lately. Later the limit lies between the rate
that was taken since the last throttled call (a token bucket is empty at both) and the rate of calls: the
middle is tried next; or, where a throttled call costs a pause, the lower one. The pace begins a little below
the limit, stays near it, and then rises faster and faster until a call is throttled again (CUBIC, as in TCP
and AWS's SDKs). The less is known of the limit, the sooner it rises.

Some upstreams answer 503 beyond their limit. Where many calls fail with 503, a pace is tried. If fewer calls
fail at that pace it stays, else it is dropped: Wald's sequential test decides after a few calls. Later it is
dropped if calls fail even at a small part of the pace that was well.
"""

import math
from dataclasses import dataclass

PERIOD, TELLING = 1.0, 10  # seconds and calls, at least, over which a rate or a share is measured
LEAST = 0.5  # of the rate is kept by the first throttled call, and by one that costs a pause
DIP = 0.03  # of the limit: the pace begins so far below it, is at it after the rise, and above it after two
FIRST_RISE = 0.4  # seconds, while no limit is known
RISE = 3.0  # seconds, and times the seconds in which the limit was measured, at most
PAUSES = 24.0  # times a pause that was asked for, if that takes longer: so pauses take 2 % of the time
FORGET = 10.0  # seconds, or times the rise, without a throttled call: then there is no limit any more
SLOWEST = 0.5  # calls a second

HARMLESS = 0.1  # share of calls that fail at the right pace
SURE = math.log(100)  # odds that decide the trial
SMALL_PART = 0.25  # of a pace at which calls did not fail


@dataclass(slots=True, eq=False)
class Call:
    """A call that may go, from `Flow.begin` until it is told how it ended."""

    began: float
    level: float
    is_probe: bool


class Pace:
    """The rate of calls that a speed limit allows, as far as it is known: of all workers together. `trial` is
    the share of calls that failed without it, where a limit is only supposed."""

    def __init__(self, since: float, limit: float, trial: float | None) -> None:
        self.trial = trial
        self._odds = 0.0  # logarithm, that fewer calls fail at this pace
        self._proven_at = 0.0  # calls a second, where the trial showed that
        self.limit = limit  # calls a second
        self._rise = FIRST_RISE
        self.restart(since)

    def restart(self, since: float) -> None:
        """Measure what is taken from then on."""
        self.since = since
        self.idle = 0.0  # seconds without calls
        self.limit = max(SLOWEST, self.limit)
        self._taken = self._calls = 0  # that began and ended since then

    def _measured_for(self, now: float) -> float:
        return now - self.since - self.idle

    def rate(self, now: float) -> float:
        """Calls a second that may go at this time."""
        if not self.is_proven:
            return self.limit
        return self.limit * (1 + DIP * (max(0.0, self._measured_for(now)) / self._rise - 1) ** 3)

    @property
    def is_proven(self) -> bool:
        """Whether there is a limit, and not only perhaps."""
        return self.trial is None or self._proven_at > 0

    @property
    def is_refuted(self) -> bool:
        """Whether there is none: calls fail at this pace as well."""
        return self._odds <= -SURE or self.limit < SMALL_PART * self._proven_at

    def is_forgotten(self, now: float) -> bool:
        """Whether no call was throttled for so long that there may be no limit any more."""
        return now - self.since > FORGET * max(1.0, self._rise)

    def ended(self, call: Call, now: float, *, is_taken: bool) -> None:
        """A call has ended. One that began before the last change tells nothing."""
        if call.began < self.since:
            return
        self._calls += 1
        self._taken += is_taken
        if self.trial is not None and not self.is_proven:
            self._odds += math.log((1 - HARMLESS) / (1 - self.trial) if is_taken else HARMLESS / self.trial)
            if self._odds >= SURE:
                self._proven_at = self.limit
                self.restart(now)

    def lower(self, call: Call, now: float, pause: float, share: float) -> None:
        """A call was throttled. It tells nothing new if it began before the last one was."""
        seconds = self._measured_for(now)
        is_measured = seconds >= PERIOD and self._calls >= TELLING if self._taken else seconds >= PERIOD / 2
        if call.began < self.since or not (is_measured or pause):
            return
        rate = self.rate(now)
        taken = min(rate, self._taken / max(seconds, PERIOD) / share)
        self.limit = max(taken, LEAST * rate) if pause else (taken + rate) / 2
        self._rise = min(FIRST_RISE + RISE * seconds, max(RISE, PAUSES * pause))
        self.restart(now + pause)
