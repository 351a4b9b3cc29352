"""The gate: when it closes, who goes through, and how it opens (contract §6)."""

import asyncio
from collections.abc import Callable

import pytest

from worker.events import EventListener
from worker.pipeline.gate import Gate, GateState, Passage

Waiting = list["asyncio.Task[Passage]"]


class Events(EventListener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def gate_closed(self, why: str) -> None:
        self.heard.append("closed")

    def gate_opening(self) -> None:
        self.heard.append("opening")

    def gate_closed_again(self, why: str) -> None:
        self.heard.append("closed again")

    def gate_opened(self, seconds: float) -> None:
        self.heard.append("opened")

    def gate_left(self, seconds: float) -> None:
        self.heard.append("left")


def gate(after: int = 3, events: EventListener | None = None) -> Gate:
    return Gate(after, 0.001, events or EventListener())


def fail(passage: Passage, resource: str = "r", *, outage: bool = True) -> bool:
    return passage.failed(resource, "503", outage=outage)


def closed(events: EventListener | None = None) -> Gate:
    a_gate = gate(1, events)
    assert fail(a_gate.passage())
    return a_gate


async def through(a_gate: Gate) -> Passage:
    """A passage that has been let through, and is not over yet."""
    async with asyncio.timeout(5):
        return await a_gate.passage().__aenter__()


async def is_let_through(a_gate: Gate, within: float = 0.2) -> bool:
    waiting = asyncio.create_task(a_gate.passage().__aenter__())
    done, _ = await asyncio.wait({waiting}, timeout=within)
    await end([waiting])
    return bool(done)


async def wait_at(a_gate: Gate, count: int) -> Waiting:
    tasks = [asyncio.create_task(a_gate.passage().__aenter__()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def let_through(waiting: Waiting) -> list[Passage]:
    """Those that may call now, in their order."""
    for _ in range(5):
        await asyncio.sleep(0)
    passages = [task.result() for task in waiting if task.done() and not task.cancelled()]
    return [passage for passage in passages if passage.may_call]


async def end(waiting: Waiting) -> None:
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_it_closes_after_so_many_outages_in_a_row_and_the_last_costs_no_attempt() -> None:
    events = Events()
    a_gate = gate(3, events)
    assert [fail(a_gate.passage()) for _ in range(3)] == [False, False, True]
    assert a_gate.state is GateState.CLOSED
    assert events.heard == ["closed"]


async def test_a_success_between_breaks_the_row() -> None:
    a_gate = gate(3)
    for _ in range(10):
        assert not fail(a_gate.passage())
        assert not fail(a_gate.passage())
        a_gate.passage().succeeded("r")
    assert a_gate.state is GateState.OPEN


async def test_other_5xx_of_two_resources_never_close_it() -> None:
    a_gate = gate(3)
    for n in range(50):
        assert not fail(a_gate.passage(), f"r{n % 2}", outage=False)


async def test_other_5xx_of_three_resources_close_it() -> None:
    a_gate = gate(3)
    fail(a_gate.passage(), "a", outage=False)
    fail(a_gate.passage(), "b", outage=False)
    assert fail(a_gate.passage(), "c", outage=False)


async def test_one_probe_at_a_time_goes_through_each_time_another() -> None:
    a_gate = closed()
    passed: list[int] = []

    async def wait(number: int) -> None:
        while True:
            async with a_gate.passage() as passage:
                assert passage.is_probe
                passed.append(number)
                await asyncio.sleep(0.01)
                assert fail(passage)

    waiting = [asyncio.create_task(wait(n)) for n in range(4)]
    async with asyncio.timeout(10):
        while len(passed) < 8:
            await asyncio.sleep(0.005)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert passed[:8] == [0, 1, 2, 3, 0, 1, 2, 3]


async def test_where_nobody_waits_the_success_of_the_probe_opens_it() -> None:
    events = Events()
    a_gate = closed(events)
    (await through(a_gate)).succeeded("r")
    assert a_gate.state is GateState.OPEN
    assert events.heard == ["closed", "opening", "opened"]


async def test_after_a_pause_the_flow_starts_with_one_call_and_doubles_with_each_success() -> None:
    events = Events()
    a_gate = closed(events)
    probe = await through(a_gate)
    waiting = await wait_at(a_gate, 100)
    assert await let_through(waiting) == []
    probe.succeeded("probe")
    seen = []
    while a_gate.state is GateState.OPENING:
        under_way = await let_through(waiting)
        seen.append(len(under_way))
        under_way[-1].succeeded("r")
    assert seen == [2, 4, 8, 16, 32, 64, 94]  # when all the others are under way, nobody waits
    assert len(await let_through(waiting)) == 100
    assert events.heard == ["closed", "opening", "opened"]


async def test_successes_of_an_earlier_level_do_not_raise_the_level() -> None:
    a_gate = closed()
    probe = await through(a_gate)
    waiting = await wait_at(a_gate, 20)
    probe.succeeded("probe")
    first, second = await let_through(waiting)
    first.succeeded("a")
    second.succeeded("b")
    assert len(await let_through(waiting)) == 4
    await end(waiting)


async def test_a_failure_on_the_way_up_closes_it_again_and_costs_no_attempt() -> None:
    events = Events()
    a_gate = closed(events)
    probe = await through(a_gate)
    waiting = await wait_at(a_gate, 20)
    probe.succeeded("probe")
    first, second = await let_through(waiting)
    assert fail(first, outage=False)
    assert a_gate.state is GateState.CLOSED
    assert not second.may_call
    assert fail(second)  # it began before, so it costs nothing either
    assert events.heard == ["closed", "opening", "closed again"]
    await end(waiting)


async def test_a_request_that_fails_on_the_way_up_each_time_closes_it_only_once() -> None:
    a_gate = closed()
    for closes in (True, False):
        probe = await through(a_gate)
        waiting = await wait_at(a_gate, 20)
        probe.succeeded("good")
        first, second = await let_through(waiting)
        assert fail(first, "bad") is closes
        if closes:
            await end(waiting)
    assert a_gate.state is GateState.OPENING
    assert second in await let_through(waiting)
    await end(waiting)


async def test_a_call_from_before_the_pause_neither_opens_nor_closes_it() -> None:
    a_gate = gate(1)
    before = a_gate.passage()
    assert fail(a_gate.passage())
    before.succeeded("r")
    assert a_gate.state is GateState.CLOSED
    probe = await through(a_gate)
    waiting = await wait_at(a_gate, 5)
    probe.succeeded("r")
    assert fail(before)
    assert a_gate.state is GateState.OPENING
    await end(waiting)


async def test_a_probe_that_is_told_nothing_leaves_its_place_to_another() -> None:
    a_gate = closed()
    async with a_gate.passage():
        assert not await is_let_through(a_gate)
    assert await is_let_through(a_gate, within=5)


async def test_a_request_that_goes_away_as_it_is_let_through_leaves_its_place_to_another() -> None:
    a_gate = closed()
    first, second = await wait_at(a_gate, 2)

    def cancel_in_the_same_turn() -> None:
        a_gate._let_probe_through()
        first.cancel()

    asyncio.get_running_loop().call_soon(cancel_in_the_same_turn)
    async with asyncio.timeout(5):
        await second
    assert first.cancelled()


async def test_failures_while_closed_cost_no_attempt() -> None:
    a_gate = gate(1)
    before = a_gate.passage()
    fail(a_gate.passage())
    assert fail(before, outage=False)
    assert fail(before)


async def test_the_time_that_it_is_not_open_is_counted() -> None:
    now = 100.0
    a_gate = Gate(1, 0.001, EventListener(), lambda: now)
    fail(a_gate.passage())
    now = 107.0
    assert a_gate.paused == 7
    probe = await through(a_gate)
    waiting = await wait_at(a_gate, 1)
    probe.succeeded("r")
    now = 109.0
    assert a_gate.paused == 9
    [last] = await let_through(waiting)
    last.succeeded("r")
    now = 200.0
    assert a_gate.paused == 9


@pytest.mark.parametrize(
    "comes_to", [fail, lambda p: p.succeeded("r"), lambda p: None], ids=["failure", "success", "nothing"]
)
async def test_a_pause_that_was_asked_for_is_kept_whatever_the_probe_under_way_comes_to(
    comes_to: Callable[[Passage], object],
) -> None:
    """429/50200 of a call that was on its way when the gate closed."""
    a_gate = gate(1)
    before = a_gate.passage()
    fail(a_gate.passage())
    async with a_gate.passage() as probe:
        before.close("blocked", 60)
        comes_to(probe)
    assert a_gate.state is GateState.CLOSED
    assert not await is_let_through(a_gate)


async def test_there_is_never_a_second_probe_beside_one() -> None:
    a_gate = gate(1)
    before = a_gate.passage()
    fail(a_gate.passage())
    async with a_gate.passage():
        before.close("blocked", 0.01)
        assert not await is_let_through(a_gate)
    assert await is_let_through(a_gate, within=5)


async def test_when_the_requests_have_gone_back_it_pauses_nobody_and_the_next_request_probes_at_once() -> (
    None
):
    now = 100.0
    events = Events()
    a_gate = Gate(1, 1000.0, events, lambda: now)  # the next probe would go in half a minute
    fail(a_gate.passage())
    a_gate.leave()
    now = 500.0
    assert (a_gate.state, a_gate.is_pausing, a_gate.paused) == (GateState.LEFT, False, 0)
    (await through(a_gate)).succeeded("r")
    assert a_gate.state is GateState.OPEN
    assert events.heard == ["closed", "left", "closed", "opening", "opened"]
