"""The pace of calls under a speed limit of Marketing Cloud (contract §6). No I/O; the clock is a parameter.

The first throttled call sets the pace to half of the recent rate of successful calls. Later the limit lies
between the rate of successful calls since the last throttled call (a token bucket is empty at both) and the
rate of all calls. The pace continues at their mean or, if a throttled call causes a pause, at the lower rate.
It begins a little below the limit, stays near it, and then rises faster and faster until a call is throttled
again (CUBIC, as in TCP and AWS's SDKs). The less is known about the limit, the sooner it rises.

Some upstreams answer 503 beyond their limit. If many calls fail with 503, a pace is tried. It stays if fewer
calls fail at that pace, else it is dropped: Wald's sequential test decides after a few calls. Later it is
dropped if calls fail even at a small share of the proven pace."""

import math
from dataclasses import dataclass

PERIOD, TELLING = 1.0, 10  # the fewest seconds and calls over which a rate or share is measured
LEAST = 0.5  # share of the rate that the first throttled call, or one that causes a pause, leaves at least
DIP = 0.03  # share of the limit by which the pace begins below it; after the rise it equals the limit
FIRST_RISE = 0.4  # seconds, while no limit is known
RISE = 3.0  # seconds; and the factor of the seconds in which the limit was measured, at most
PAUSES = 24.0  # factor of a requested pause, if that is longer: pauses use 2 % of the time
FORGET = 10.0  # seconds, or times the rise, without a throttled call, after which the limit is dropped
SLOWEST = 0.5  # calls per second

HARMLESS = 0.1  # share of calls that fail at the right pace
SURE = math.log(100)  # log odds that decide the trial
SMALL_PART = 0.25  # share of the proven pace


@dataclass(slots=True, eq=False)
class Call:
    """A call, from `Flow.begin` until its end is reported."""

    began: float
    level: float
    is_probe: bool


class Pace:
    """The rate of calls that a speed limit allows all workers together, as far as it is known. If a limit is
    only suspected, `trial` is the share of calls that failed without the pace."""

    def __init__(self, since: float, limit: float, trial: float | None) -> None:
        self.trial = trial
        self._odds = 0.0  # log odds that fewer calls fail at this pace
        self._proven_at = 0.0  # calls per second at which the trial succeeded
        self.limit = limit  # calls per second
        self._rise = FIRST_RISE
        self.restart(since)

    def restart(self, since: float) -> None:
        """Start a new measurement."""
        self.since = since
        self.idle = 0.0  # seconds without calls
        self.limit = max(SLOWEST, self.limit)
        self._accepted = self._calls = 0  # calls that began and ended since then

    def _measured_for(self, now: float) -> float:
        return now - self.since - self.idle

    def rate(self, now: float) -> float:
        """The allowed calls per second at this time."""
        if not self.is_proven:
            return self.limit
        return self.limit * (1 + DIP * (max(0.0, self._measured_for(now)) / self._rise - 1) ** 3)

    @property
    def is_proven(self) -> bool:
        """Whether the limit is certain."""
        return self.trial is None or self._proven_at > 0

    @property
    def is_refuted(self) -> bool:
        """Whether there is no limit: calls fail at this pace as well."""
        return self._odds <= -SURE or self.limit < SMALL_PART * self._proven_at

    def is_forgotten(self, now: float) -> bool:
        """Whether no call was throttled for so long that the limit may no longer exist."""
        return now - self.since > FORGET * max(1.0, self._rise)

    def ended(self, call: Call, now: float, *, is_accepted: bool) -> None:
        """A call has ended. It is ignored if it began before the last change."""
        if call.began < self.since:
            return
        self._calls += 1
        self._accepted += is_accepted
        if self.trial is not None and not self.is_proven:
            self._odds += math.log(
                (1 - HARMLESS) / (1 - self.trial) if is_accepted else HARMLESS / self.trial
            )
            if self._odds >= SURE:
                self._proven_at = self.limit
                self.restart(now)

    def lower(self, call: Call, now: float, pause: float, share: float) -> None:
        """A call was throttled. It is ignored if it began before the last change."""
        seconds = self._measured_for(now)
        is_measured = (
            seconds >= PERIOD and self._calls >= TELLING if self._accepted else seconds >= PERIOD / 2
        )
        if call.began < self.since or not (is_measured or pause):
            return
        rate = self.rate(now)
        accepted = min(rate, self._accepted / max(seconds, PERIOD) / share)
        self.limit = max(accepted, LEAST * rate) if pause else (accepted + rate) / 2
        self._rise = min(FIRST_RISE + RISE * seconds, max(RISE, PAUSES * pause))
        self.restart(now + pause)
