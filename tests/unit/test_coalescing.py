"""Many requests of one resource: the newest first, and the result is that of one by one (contract §2)."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.events import EventListener
from worker.pipeline.journey import Journeys, Tools
from worker.pipeline.request import Outcome

AFTER = 3


@dataclass(eq=False)
class Waiting:
    """A request, as far as its journey looks at it, and what Marketing Cloud will say of it."""

    place: int
    as_of: int | None
    answer: str
    resource: str = "page"
    is_replay: bool = False
    forced: bool = False
    parsed: object = None
    attempts: int = 0
    phase: str = "waiting"
    older: tuple["Waiting", ...] = ()

    @property
    def id(self) -> str:
        return str(self.place)

    @property
    def true_at(self) -> int:
        return self.place if self.as_of is None else min(self.as_of, self.place)

    @property
    def delivery(self) -> Any:
        return SimpleNamespace(
            request=self, times_returned=0, redelivered=False, oversize=False, body=b"", arrived_at=0.0
        )

    def header(self, name: str) -> bool:
        return self.forced


@dataclass
class World:
    """Broker, Marketing Cloud and journal; every wait of the worker goes through `step`."""

    requests: list[Waiting]
    dies_at: int = -1
    after: int = AFTER
    steps: int = 0
    called: list[Waiting] = field(default_factory=list)
    registered: list[Waiting] = field(default_factory=list)
    recorded: list[Waiting] = field(default_factory=list)
    answers: dict[str, Outcome] = field(default_factory=dict)
    acknowledged: list[Waiting] = field(default_factory=list)

    async def step(self) -> None:
        self.steps += 1
        if self.steps == self.dies_at:
            self.died.set()
        if self.died.is_set():
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)

    # What the journey uses:

    async def forward(self, request: Waiting, _: object) -> Outcome:
        await self.step()
        self.called.append(request)
        if request.answer == "registered":
            self.registered.append(request)
        await self.step()
        return Outcome(cast("Any", request.answer))

    async def settle(self, request: Waiting, outcome: Outcome) -> Any:
        await self.step()
        if outcome.status == "registered":
            self.recorded.append(request)
        self.answers[request.id] = outcome
        await self.step()
        return SimpleNamespace()

    async def judge(self, request: Waiting) -> Outcome | None:
        await self.step()
        newer = [each.id for each in self.recorded if each.true_at > request.true_at]
        return Outcome("superseded", superseded_by=newer[-1]) if newer and not request.forced else None

    def settled(self, settlement: object) -> None: ...

    def ack(self, delivery: Any) -> None:
        assert delivery.request not in self.acknowledged
        self.acknowledged.append(delivery.request)

    async def ensure_lease(self) -> None: ...
    def reset(self) -> None: ...

    def stamp(self) -> int:
        return 0

    async def take_over(self) -> None: ...

    def parse(self, delivery: Any, now: int) -> Waiting:
        return cast("Waiting", delivery.request)

    async def work(self) -> "World":
        """Deliver all that is not acknowledged, in order, until all is; a worker that dies is followed by
        another."""
        while unsettled := [each for each in self.requests if each not in self.acknowledged]:
            self.died = asyncio.Event()
            world = cast("Any", self)
            world.ended = asyncio.get_running_loop().create_future()
            tools = Tools(
                cast("Any", SimpleNamespace(coalesce_after=self.after)),
                *(world, world, world, world, world),
                EventListener(),
                *(world, world),
            )
            journeys = Journeys(world, tools)
            for request in unsettled:
                request.older, request.phase = (), "waiting"
                journeys.accept(request.delivery)
            dying = asyncio.create_task(self.died.wait())
            while not dying.done() and journeys.end is None and set(unsettled) - set(self.acknowledged):
                await asyncio.sleep(0)
            dying.cancel()
            await journeys.cancel()
            assert journeys.end is None
        return self


def requests_of(*specs: tuple[int | None, str]) -> list[Waiting]:
    return [Waiting(place, as_of, answer) for place, (as_of, answer) in enumerate(specs)]


ANSWERS = st.sampled_from(["registered", "registered", "rejected", "failed"])
SPECS = st.lists(st.tuples(st.none() | st.integers(-5, 15), ANSWERS), min_size=1, max_size=12)


@given(specs=SPECS)
@settings(max_examples=60, deadline=None)
def test_the_page_ends_as_one_by_one_would_have_left_it_wherever_the_worker_dies(specs):
    alone = asyncio.run(World(requests_of(*specs)).work())
    accepted = [each for each in alone.requests if each.answer == "registered"]
    newest = max(accepted, key=lambda each: (each.true_at, each.place), default=None)
    for dies_at in range(alone.steps + 1):
        world = asyncio.run(World(requests_of(*specs), dies_at).work())
        last = world.registered[-1] if world.registered else None
        assert (last and last.true_at) == (newest and newest.true_at)
        assert len(world.acknowledged) == len(specs)
        for request in world.requests:
            outcome = world.answers[request.id]
            if outcome.status == "superseded":
                newer = world.requests[int(outcome.superseded_by or "")]
                assert newer in world.registered
                assert newer.true_at >= request.true_at
            else:
                assert outcome.status == request.answer


@pytest.mark.parametrize(("count", "calls"), [(AFTER, AFTER), (AFTER + 1, 1), (200, 1)])
async def test_only_where_many_wait_the_older_ones_are_not_called(count, calls):
    world = await World(requests_of(*[(None, "registered")] * count)).work()
    assert len(world.called) == calls
    if calls == 1:
        assert {outcome.superseded_by for outcome in world.answers.values()} == {None, str(count - 1)}
        assert world.acknowledged[-1].place == count - 1  # after all that it superseded


async def test_one_that_is_not_registered_is_settled_and_the_next_newest_is_called():
    specs = [(None, "registered")] * 8 + [(None, "rejected"), (None, "failed")]
    world = await World(requests_of(*specs)).work()
    assert [each.place for each in world.called] == [9, 8, 7]


async def test_with_0_all_go_one_by_one_in_the_order_of_the_queue():
    world = await World(requests_of(*[(None, "registered")] * 50), after=0).work()
    assert [each.place for each in world.called] == list(range(50))


async def test_a_forced_replay_is_never_superseded():
    requests = requests_of(*[(None, "registered")] * 10)
    requests[4].is_replay = requests[4].forced = True
    world = await World(requests).work()
    assert requests[4] in world.called
    assert world.registered[-1].place == 9
