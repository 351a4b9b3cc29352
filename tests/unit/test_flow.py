"""The flow to Marketing Cloud in simulated time: outages, grey failures and speed limits (contract §6)."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import pytest

from tests.rig import Events
from tests.support.upstream import Behaviour, failing, limited, windowed
from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.pipeline.flow import Flow, FlowState
from worker.pipeline.pace import Call

PREFETCH = 200
LATENCY = 0.05  # seconds, on average


class NoGate:
    """Calls as fast as it can, whatever comes back."""

    answered = 0

    def wait(self) -> float:
        return 0.0

    def accepted(self, call: object) -> None:
        self.answered += 1

    def begin(self) -> None: ...
    def throttled(self, *args: object) -> None: ...
    def no_request_waits(self) -> None: ...

    def failed(self, *args: object, **more: object) -> bool:
        return False


@dataclass
class World:
    """Requests without end, `PREFETCH` at a time, through a flow to an upstream."""

    upstream: Behaviour
    seconds: float = 60.0
    with_flow: bool = True
    attempts: int = 6
    now: float = 0.0
    calls: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    exhausted: list[int] = field(default_factory=list)
    heard: Events = field(default_factory=Events)

    @property
    def rate(self) -> float:
        return len(self.answers) / self.seconds

    @property
    def calls_per_answer(self) -> float:
        return len(self.calls) / max(1, len(self.answers))

    def run(self) -> "World":  # noqa: C901 - a loop over events
        flow: Any = new_flow(lambda: self.now, self.heard) if self.with_flow else NoGate()
        order, events, wake = count(), list[tuple[float, int, int, int, Any, float]](), float("inf")
        ready, tries, since = deque(range(PREFETCH)), [0] * PREFETCH, [0] * PREFETCH

        def later(seconds: float, *event: Any) -> None:
            heapq.heappush(events, (self.now + seconds, next(order), *event))

        while True:
            while ready and (wait := flow.wait()) == 0:
                request = ready.popleft()
                self.calls.append(self.now)
                status, hint = self.upstream(self.now, request)
                later(LATENCY * random.uniform(0.5, 1.5), status, request, flow.begin(), hint)
            if ready and wait is not None and self.now + wait < wake:
                wake = self.now + wait
                later(wait, 0, -1, None, 0.0)
            if not events or events[0][0] > self.seconds:
                return self
            self.now, _, status, request, call, hint = heapq.heappop(events)
            if status == 0:  # a timer: the request is ready again, if there is one
                wake = wake if request >= 0 else float("inf")
                ready.extend([request] if request >= 0 else [])
                continue
            if status == 200:
                flow.accepted(call)
                self.answers.append(self.now)
                tries[request] = 0
                ready.append(request)
            elif status == 429 and self.with_flow:
                flow.throttled(call, "429", hint)
                ready.appendleft(request)
            elif flow.failed(
                call, request, CAUSES.get(status, Cause.ERROR), "", outage=status == 503, pause=hint
            ):
                ready.append(request)
            else:
                if tries[request] == 0:
                    since[request] = flow.answered
                tries[request] += 1
                if tries[request] >= self.attempts and (status == 500 or flow.answered > since[request]):
                    self.exhausted.append(request)
                    tries[request] = 0
                step = min(60.0, 0.5 * 2 ** max(0, tries[request] - 1))
                later(max(hint, random.uniform(0, step)), 0, request, None, 0.0)
            if not ready:
                flow.no_request_waits()


CAUSES = {503: Cause.NOT_AVAILABLE}


def new_flow(clock: Callable[[], float], events: EventListener | None = None, **more: Any) -> Flow:
    more = {"after": 5, "base": 0.5, "most": PREFETCH, **more}
    return Flow(clock, events or EventListener(), **more)


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(2)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_grey_failure_is_no_outage(share, status):
    """At least 80 % of what would be reached with no gate at all, the start included."""

    def rate(*, with_flow: bool) -> float:
        return sum(World(failing(share, status), 30, with_flow=with_flow).run().rate for _ in range(3))

    assert rate(with_flow=True) >= 0.8 * rate(with_flow=False)


@pytest.mark.parametrize(("hint", "seconds"), [(0.0, 60), (1.0, 120)])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("limit", [5, 40, 200])
def test_a_speed_limit_is_a_pace(limit, status, hint, seconds):
    """With `Retry-After` it takes longer, because each second that was asked for is waited by all."""
    for _ in range(2):
        world = World(limited(limit, status, hint), seconds).run()
        assert world.rate >= 0.9 * limit
        assert world.calls_per_answer <= 1.2
        assert not world.exhausted


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("limit", [40, 200])
def test_a_limit_of_calls_in_each_second_is_a_pace(limit, status):
    """An upstream that takes so many at once, and then none until the second is over."""
    world = World(windowed(limit, status), 60).run()
    assert world.rate >= 0.9 * limit
    assert world.calls_per_answer <= 1.2
    assert not world.exhausted


def test_a_limit_that_was_raised_or_lowered_is_found_again():
    slow, fast = limited(5, 429, 0), limited(200, 429, 0)
    world = World(lambda now, _: (fast if 40 <= now < 80 else slow)(now), 120).run()
    assert len([at for at in world.answers if 70 < at <= 80]) > 0.8 * 10 * 200
    assert len([at for at in world.answers if 90 < at <= 120]) > 0.9 * 30 * 5
    assert len([call for call in world.calls if 80 < call <= 120]) < 3 * 40 * 5


@pytest.mark.parametrize(
    ("upstream", "most_calls", "least_answers"),
    [
        # All calls are throttled, and then none: github.com/platinummonkey/go-concurrency-limits/issues/141
        (lambda now, _: (200 if now > 60 else 429, 0.0), 30_000, 20_000),
        # So many calls in each minute, without a hint: github.com/aws/aws-sdk-net/issues/4341
        (windowed(600, 429, 60), 4_500, 1_200),
    ],
    ids=["all are throttled", "so many a minute"],
)
def test_what_other_limiters_broke_at(upstream, most_calls, least_answers):
    world = World(upstream, 100).run()
    assert len(world.calls) <= most_calls + len(world.answers)
    assert len(world.answers) >= least_answers


@pytest.mark.parametrize("more", [{}, {"limit": 10}], ids=["pace", "limit"])
def test_idle_time_allows_no_burst(more):
    """github.com/pelikan-io/rustcommon/issues/36"""
    clock = Clock()
    flow = new_flow(clock, **more)
    for _ in range(4):
        clock.now += flow.wait() or 0.0
        flow.accepted(flow.begin())
    if not more:
        flow.throttled(flow.begin(), "429", 0)
    for _ in range(20):
        clock.now += flow.wait() or 0.0
        flow.accepted(flow.begin())
    clock.now += 8
    burst = 0
    while flow.wait() == 0:
        flow.begin()
        burst += 1
    assert burst <= 5


def test_a_machine_that_was_suspended_in_an_outage_makes_one_probe():
    clock = Clock()
    flow = closed(clock)
    clock.now += 3600
    flow.begin()
    assert flow.wait() is None


def test_a_limit_that_turns_into_failures_at_any_pace_is_dropped():
    limit, grey = limited(40, 503, 0), failing(0.7, 503)
    world = World(lambda now, _: (limit if now < 30 else grey)(now), 60).run()
    assert len([at for at in world.answers if at > 40]) > 20 * 50


def test_a_pause_that_is_asked_for_again_and_again_ends_when_the_limit_does():
    """Though each is longer than the time between two calls."""
    world = World(lambda now, _: (429, 30.0) if now < 200 else (200, 0.0), 260).run()
    assert len([call for call in world.calls if call < 200]) < 16 + 200 / 30 + 1
    assert len([answer for answer in world.answers if answer > 250]) > 1000


def test_an_outage_is_a_pause_with_one_probe_at_a_time_and_costs_no_attempt():
    world = World(lambda now, _: (503 if 10 <= now < 35 else 200, 0.0), 60, attempts=2).run()
    during = [call for call in world.calls if 10.2 < call < 35]
    assert 4 <= len(during) < 20
    assert min(b - a for a, b in pairwise(during)) > LATENCY / 2
    assert not world.exhausted
    back = next(answer for answer in world.answers if answer > 35)
    assert back < 35 + 12
    after = [call - back for call in world.calls if call > back]
    assert sum(call < LATENCY for call in after) < 20  # no stampede
    assert sum(call < 1 for call in after) > 1000


def test_a_probe_that_succeeds_by_chance_does_not_open_everything():
    world = World(lambda now, _: (200 if now < 5 or random.random() < 0.02 else 503, 0.0), 300).run()
    assert len([call for call in world.calls if call > 5.2]) < 700
    assert not world.exhausted


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(flow: Flow, call: Call, resource: str = "r", *, outage: bool = True, pause: float = 0.0) -> bool:
    return flow.failed(call, resource, Cause.BAD_GATEWAY, "502", outage=outage, pause=pause)


def closed(clock: Clock, heard: Events | None = None) -> Flow:
    flow = new_flow(clock, heard)
    while not fail(flow, flow.begin()):
        pass
    return flow


def probe(flow: Flow, clock: Clock) -> Call:
    wait = flow.wait()
    assert wait is not None
    clock.now += wait
    return flow.begin()


def test_it_closes_after_so_many_outages_in_a_row_and_the_last_costs_no_attempt():
    flow = new_flow(Clock())
    assert [fail(flow, flow.begin()) for _ in range(5)] == [False] * 4 + [True]
    assert flow.state is FlowState.CLOSED
    assert (flow.cause, flow.why) == (Cause.BAD_GATEWAY, "502")


@pytest.mark.parametrize(("resources", "closes"), [("ab", False), ("abc", True)])
def test_other_failures_close_it_only_from_three_resources(resources, closes):
    flow = new_flow(Clock())
    told = [fail(flow, flow.begin(), resources[n % len(resources)], outage=False) for n in range(6)]
    assert any(told) is closes


def test_the_longest_wait_for_a_probe_is_half_a_minute():
    clock = Clock()
    flow = closed(clock)
    waits = []
    for _ in range(50):
        before = clock.now
        fail(flow, probe(flow, clock))
        waits.append(clock.now - before)
    assert max(waits[:3]) <= 0.5
    assert max(waits) <= 30
    assert min(waits[-5:]) >= 15


def test_there_is_never_a_second_probe_beside_one_and_one_told_nothing_leaves_its_place():
    clock = Clock()
    flow = closed(clock)
    call = probe(flow, clock)
    assert call.is_probe
    assert flow.wait() is None
    flow.abandoned(call)
    assert flow.wait() == 0


def test_it_opens_with_two_calls_and_doubles_and_halves():
    clock, heard = Clock(), Events()
    flow = closed(clock, heard)
    flow.accepted(probe(flow, clock))
    levels, calls = [], list[Call]()
    for outcome in (True, True, False, True, True):
        calls = []
        while flow.wait() == 0:
            calls.append(flow.begin())
        levels.append(len(calls))
        if outcome:
            flow.accepted(calls[0])
        else:
            fail(flow, calls[0])
        for call in calls[1:]:
            flow.abandoned(call)
    assert levels == [2, 4, 8, 4, 8]
    flow.no_request_waits()
    assert flow.state is FlowState.OPEN
    assert heard.names[:2] == ["gate_closed", "gate_opening"]


def test_a_call_from_before_the_pause_neither_opens_nor_closes_it_and_may_not_go():
    clock = Clock()
    flow = new_flow(clock)
    before, other = flow.begin(), flow.begin()
    while not fail(flow, flow.begin()):
        pass
    assert not flow.allows(before)
    flow.accepted(before)
    assert flow.state is FlowState.CLOSED
    flow.accepted(probe(flow, clock))
    assert fail(flow, other)
    assert flow.state is FlowState.OPENING


@pytest.mark.parametrize("ends", ["failed", "accepted", "abandoned"])
def test_a_pause_that_was_asked_for_is_kept_whatever_becomes_of_the_probe(ends):
    clock = Clock()
    flow = new_flow(clock)
    before = flow.begin()
    while not fail(flow, flow.begin()):
        pass
    call = probe(flow, clock)
    flow.close(Cause.BLOCKED, "blocked", 60, before)
    if ends == "failed":
        fail(flow, call)
    else:
        getattr(flow, ends)(call)
    assert flow.state is FlowState.CLOSED
    assert (flow.wait() or 0) > 59.9


def test_retry_after_of_a_throttled_call_is_a_pause_of_all():
    clock = Clock()
    flow = new_flow(clock)
    flow.throttled(flow.begin(), "429", 7)
    assert flow.wait() == 7
    assert flow.pace is not None
    assert flow.state is FlowState.OPEN


def test_when_the_requests_have_gone_back_it_pauses_nobody_and_the_next_one_is_a_probe():
    clock, heard = Clock(), Events()
    flow = closed(clock, heard)
    flow.reset()
    assert (flow.state, flow.is_pausing, flow.wait()) == (FlowState.UNKNOWN, False, 0)
    call = flow.begin()
    assert call.is_probe
    flow.accepted(call)
    flow.no_request_waits()
    assert heard.names == ["gate_closed", "gate_reset", "gate_closed", "gate_opening", "gate_opened"]


def test_a_rate_limit_is_for_all_workers_together_also_while_shares_change():
    clock = Clock()
    share = 0.25
    flow = new_flow(clock, limit=40, share=lambda: share)

    def calls(seconds: float) -> int:
        made, end = 0, clock.now + seconds
        while clock.now < end:
            wait = flow.wait()
            assert wait is not None
            clock.now += wait
            flow.accepted(flow.begin())
            made += 1
        return made

    assert calls(10) == pytest.approx(100, abs=2)
    share = 1.0
    assert calls(10) == pytest.approx(400, abs=5)
