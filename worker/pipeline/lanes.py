"""Lanes: requests for one resource go one after the other, those for different resources side by side
(contract §2). `pick` decides which of a lane goes next: the first, if it is not given."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from worker.pipeline.suspects import Suspects

Item = TypeVar("Item", bound=Hashable)

POLL_INTERVAL = 0.05  # seconds, while draining


class Lanes(Generic[Item]):
    """Runs `process(item)` for each item, one at a time within a lane. A lane exists while it has items."""

    def __init__(
        self,
        process: Callable[[Item], Awaitable[None]],
        pick: Callable[[Sequence[Item]], Item] = lambda waiting: waiting[0],
    ) -> None:
        self._process = process
        self._pick = pick
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._under_way: dict[asyncio.Task[None], list[Item]] = {}  # the one that each is at
        self._suspects = Suspects(self._start)
        self._stopped = False

    def __len__(self) -> int:
        """Lanes that have a request."""
        return len(self._waiting)

    @property
    def items(self) -> list[Item]:
        """All that have not ended."""
        return [item for waiting in self._waiting.values() for item in waiting]

    def put(self, lane: Hashable | None, item: Item, *, suspect: bool = False) -> None:
        """Add an item to the end of its lane; without a lane it waits for nobody. A `suspect` may have
        crashed the worker before (suspects.py)."""
        if self._stopped:
            return
        key = object() if lane is None else lane
        if suspect:
            self._suspects.add(item, self._under_way)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(item)
            return
        self._waiting[key] = deque((item,))
        if self._suspects:
            self._suspects.hold(key)
        else:
            self._start(key)

    def behind(self, lane: Hashable) -> list[Item]:
        """Those that wait behind the one under way; none while there are suspects."""
        return [] if self._suspects else list(self._waiting[lane])[1:]

    def drop(self, lane: Hashable, items: Sequence[Item]) -> None:
        """These ended without their turn."""
        gone, waiting = set(items), self._waiting[lane]
        kept = [item for item in waiting if item not in gone]
        waiting.clear()
        waiting.extend(kept)

    async def drain(self, may_go_on: Callable[[Item], bool], grace: float) -> None:
        """Start nothing more, and return when all have ended. Those that `may_go_on` get `grace` seconds for
        it; the others are cancelled at once."""
        self._stopped = True
        self._suspects.stop()
        deadline = asyncio.get_running_loop().time() + grace
        while self._under_way:
            late = asyncio.get_running_loop().time() >= deadline
            for task, [item] in self._under_way.items():
                if late or not may_go_on(item):
                    task.cancel()
            await asyncio.wait(set(self._under_way), timeout=POLL_INTERVAL)

    async def cancel(self) -> None:
        """Cancel all at once."""
        await self.drain(lambda _: False, 0)

    def _start(self, key: Hashable) -> "asyncio.Task[None]":
        at = [self._waiting[key][0]]
        task = asyncio.create_task(self._run(key, at))
        self._under_way[task] = at
        task.add_done_callback(self._ended)
        return task

    async def _run(self, key: Hashable, at: list[Item]) -> None:
        waiting = self._waiting[key]
        while True:
            item = at[0] = waiting[0] if self._suspects else self._pick(waiting)
            await self._process(item)
            waiting.remove(item)
            if self._suspects:
                self._suspects.clear(item)
                break  # the lane's next item waits for its turn among the other lanes
            if not waiting or self._stopped:
                break
        if not waiting:
            del self._waiting[key]
        elif not self._stopped:
            self._suspects.hold(key)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._suspects.ended(task)
