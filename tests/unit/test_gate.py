"""The gate: when it closes, who goes through, and how it opens (contract §6)."""

import asyncio

from worker.events import EventListener
from worker.pipeline.gate import Gate


class Facts(EventListener):
    def __init__(self) -> None:
        self.closed = 0
        self.opened = 0

    def gate_closed(self, why: str) -> None:
        self.closed += 1

    def gate_opened(self, seconds: float) -> None:
        self.opened += 1


def gate(after: int = 3, events: EventListener | None = None) -> Gate:
    return Gate(after, 0.001, events or EventListener())


def fail(a_gate: Gate, resource: str = "r", *, outage: bool = True, probe: bool = False) -> bool:
    return a_gate.failed(outage=outage, resource=resource, pause=0.0, why="503", probe=probe)


async def test_it_closes_after_so_many_outages_in_a_row_and_the_last_costs_no_attempt() -> None:
    events = Facts()
    a_gate = gate(3, events)
    assert [fail(a_gate) for _ in range(3)] == [False, False, True]
    assert a_gate.is_closed
    assert events.closed == 1


async def test_a_success_between_breaks_the_row() -> None:
    a_gate = gate(3)
    for _ in range(10):
        assert not fail(a_gate)
        assert not fail(a_gate)
        a_gate.succeeded()
    assert not a_gate.is_closed


async def test_other_5xx_of_two_resources_never_close_it() -> None:
    a_gate = gate(3)
    for n in range(50):
        assert not fail(a_gate, f"r{n % 2}", outage=False)


async def test_other_5xx_of_three_resources_close_it() -> None:
    a_gate = gate(3)
    fail(a_gate, "a", outage=False)
    fail(a_gate, "b", outage=False)
    assert fail(a_gate, "c", outage=False)


async def test_one_probe_at_a_time_goes_through_each_time_another() -> None:
    a_gate = gate(1)
    fail(a_gate)
    passed: list[int] = []

    async def wait(number: int) -> None:
        while await a_gate.enter():
            passed.append(number)
            await asyncio.sleep(0.01)
            assert fail(a_gate, probe=True)

    waiting = [asyncio.create_task(wait(n)) for n in range(4)]
    async with asyncio.timeout(10):
        while len(passed) < 8:
            await asyncio.sleep(0.005)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert passed[:8] == [0, 1, 2, 3, 0, 1, 2, 3]


async def test_a_success_opens_it_for_all() -> None:
    events = Facts()
    a_gate = gate(1, events)
    fail(a_gate)
    waiting = [asyncio.create_task(a_gate.enter()) for _ in range(5)]
    await asyncio.sleep(0)
    a_gate.succeeded()
    assert [await w for w in waiting].count(True) <= 1
    assert not a_gate.is_closed
    assert events.opened == 1


async def test_a_probe_whose_request_goes_away_leaves_its_place_to_another() -> None:
    a_gate = gate(1)
    fail(a_gate)
    first = asyncio.create_task(a_gate.enter())
    assert await first
    second = asyncio.create_task(a_gate.enter())
    await asyncio.sleep(0)
    a_gate.abandoned()
    async with asyncio.timeout(5):
        assert await second


async def test_failures_while_closed_cost_no_attempt() -> None:
    a_gate = gate(1)
    fail(a_gate)
    assert fail(a_gate, outage=False)
    assert fail(a_gate)


async def test_the_time_that_it_is_closed_is_counted() -> None:
    now = 100.0
    a_gate = Gate(1, 0.001, EventListener(), lambda: now)
    fail(a_gate)
    now = 107.0
    assert a_gate.paused == 7
    a_gate.succeeded()
    now = 200.0
    assert a_gate.paused == 7


async def is_let_through(a_gate: Gate, within: float = 0.2) -> bool:
    waiting = asyncio.create_task(a_gate.enter())
    done, _ = await asyncio.wait({waiting}, timeout=within)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return bool(done)


async def test_a_pause_that_was_asked_for_is_kept_whatever_the_probe_under_way_comes_to() -> None:
    """429/50200 of a call that was on its way when the gate closed."""
    for comes_to in (lambda g: fail(g, probe=True), lambda g: g.succeeded(), lambda g: g.abandoned()):
        a_gate = gate(1)
        fail(a_gate)
        assert await a_gate.enter()
        a_gate.close("blocked", 60)
        comes_to(a_gate)
        assert a_gate.is_pausing
        assert not await is_let_through(a_gate)


async def test_there_is_never_a_second_probe_beside_one() -> None:
    a_gate = gate(1)
    fail(a_gate)
    assert await a_gate.enter()
    a_gate.close("blocked", 0.01)
    assert not await is_let_through(a_gate)
    a_gate.abandoned()
    assert await is_let_through(a_gate, within=5)


async def test_when_the_requests_have_gone_back_it_pauses_nobody_and_the_next_request_probes_at_once() -> (
    None
):
    now = 100.0
    a_gate = Gate(1, 0.001, EventListener(), lambda: now)
    fail(a_gate)
    for _ in range(30):  # a back-off of half a minute
        a_gate.failed(outage=True, resource="r", pause=0.0, why="503", probe=True)
    a_gate.rest()
    now = 500.0
    assert (a_gate.is_pausing, a_gate.is_closed, a_gate.paused) == (False, True, 0)
    async with asyncio.timeout(5):
        assert await a_gate.enter()
    a_gate.succeeded()
    assert not a_gate.is_closed
