"""Lanes: order within a resource, concurrency across them (contract §2)."""

import asyncio

from worker.pipeline import lanes
from worker.pipeline.lanes import Lanes


class Item:
    def __init__(self, lane: str, number: int) -> None:
        self.lane, self.number = lane, number


class Road:
    """Travels that end when they are told to."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str, int]] = []
        self.gates: dict[tuple[str, int], asyncio.Event] = {}
        self.lanes: Lanes[Item] = Lanes(self._travel)

    async def _travel(self, item: Item) -> None:
        self.steps.append(("begin", item.lane, item.number))
        await self.gates.setdefault((item.lane, item.number), asyncio.Event()).wait()
        self.steps.append(("end", item.lane, item.number))

    def put(self, lane: str, number: int, *, suspect: bool = False) -> None:
        self.lanes.put(lane, Item(lane, number), suspect=suspect)

    async def let(self, lane: str, number: int) -> None:
        self.gates.setdefault((lane, number), asyncio.Event()).set()
        await settle()

    def begun(self) -> list[tuple[str, int]]:
        return [(lane, number) for step, lane, number in self.steps if step == "begin"]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_next_of_a_lane_begins_when_the_one_before_has_ended():
    road = Road()
    for number in range(3):
        road.put("a", number)
    road.put("b", 0)
    await settle()
    assert road.begun() == [("a", 0), ("b", 0)]
    await road.let("a", 0)
    assert road.begun() == [("a", 0), ("b", 0), ("a", 1)]
    assert len(road.lanes) == 2
    await road.lanes.cancel()


async def test_draining_ends_what_waits_and_awaits_what_may_go_on():
    road = Road()
    for lane in ("a", "b"):
        road.put(lane, 0)
        road.put(lane, 1)
    await settle()
    draining = asyncio.create_task(road.lanes.drain(lambda item: item.lane == "b", 60))
    await settle()
    await road.let("b", 0)
    await draining
    assert ("end", "b", 0) in road.steps
    assert ("end", "a", 0) not in road.steps
    assert road.begun() == [("a", 0), ("b", 0)]
    road.put("c", 0)
    await settle()
    assert ("c", 0) not in road.begun()


async def test_with_a_suspect_journeys_are_made_alone():
    road = Road()
    road.put("a", 0, suspect=True)
    road.put("b", 0, suspect=True)
    road.put("c", 0)
    await settle()
    order = []
    for done in range(1, 4):
        begun = road.begun()
        assert len(begun) == done
        order.append(begun[-1])
        if {("a", 0), ("b", 0)} <= set(order):
            break
        await road.let(*begun[-1])
    for lane in ("a", "b", "c"):
        await road.let(lane, 0)
    assert len(road.lanes) == 0


async def test_suspects_go_in_an_order_drawn_by_chance():
    firsts = set()
    for _ in range(60):
        road = Road()
        for lane in ("a", "b", "c"):
            road.put(lane, 0, suspect=True)
        await settle()
        firsts.add(road.begun()[0])
        await road.lanes.cancel()
    assert firsts == {("a", 0), ("b", 0), ("c", 0)}


async def test_after_the_last_suspect_all_go_side_by_side_again():
    road = Road()
    road.put("a", 0, suspect=True)
    await settle()
    road.put("b", 0)
    road.put("c", 0)
    await settle()
    assert road.begun() == [("a", 0)]
    await road.let("a", 0)
    assert set(road.begun()) == {("a", 0), ("b", 0), ("c", 0)}
    await road.lanes.cancel()


async def test_a_journey_that_takes_long_holds_others_up_only_for_a_moment(monkeypatch):
    """Neither when others ended before its moment was over, nor when it began before the first suspect."""
    monkeypatch.setattr(lanes, "ALONE_FOR", 0.02)
    for _ in range(10):
        road = Road()
        road.put("long", 0)
        await settle()
        for lane in ("a", "b", "c"):
            road.put(lane, 0, suspect=True)
        quick = road.gates.setdefault(("b", 0), asyncio.Event())
        quick.set()
        async with asyncio.timeout(10):
            while len(road.begun()) < 4:
                await asyncio.sleep(0.005)
        await road.lanes.cancel()
