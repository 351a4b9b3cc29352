"""Lanes: requests for one resource go one after the other, those for different resources side by side
(contract §2).

A request that may be what ended the worker before is a suspect. While there is one, journeys begin one
after the other, in an order drawn by chance: so a request that ends the worker each time takes the others
down less and less often, and soon they are all settled and it is alone.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

POLL_INTERVAL = 0.05  # seconds, while draining
# What ends a worker does so at once. A journey alone that takes longer (it waits for the gate, or for its
# next attempt) must not hold up all others.
ALONE_FOR = 1.0  # seconds


class Lanes(Generic[Item]):
    """Runs `travel(item)` for each item, in order within a lane; a lane exists while it has items."""

    def __init__(self, travel: Callable[[Item], Awaitable[None]]) -> None:
        self._travel = travel
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._under_way: dict[asyncio.Task[None], Item] = {}
        self._suspects: set[Item] = set()
        self._young: set[asyncio.Task[None]] = set()  # others wait for these, while there are suspects
        self._held: list[Hashable] = []
        self._stopped = False

    def __len__(self) -> int:
        """Lanes that have a request."""
        return len(self._waiting)

    @property
    def items(self) -> list[Item]:
        """All that have not ended."""
        return [item for waiting in self._waiting.values() for item in waiting]

    def put(self, lane: Hashable | None, item: Item, *, suspect: bool = False) -> None:
        """Add an item to the end of its lane; without a lane it waits for nobody."""
        if self._stopped:
            return
        key = object() if lane is None else lane
        if suspect:
            if not self._suspects:
                self._wait_for(*self._under_way)
            self._suspects.add(item)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(item)
            return
        self._waiting[key] = deque((item,))
        if self._suspects:
            self._hold(key)
        else:
            self._start(key)

    async def drain(self, may_go_on: Callable[[Item], bool], grace: float) -> None:
        """Start nothing more, end what `may_go_on` says no to, and return when the rest has ended; what
        takes longer than `grace` seconds is ended too."""
        self._stopped = True
        deadline = asyncio.get_running_loop().time() + grace
        while self._under_way:
            late = asyncio.get_running_loop().time() >= deadline
            for task, item in self._under_way.items():
                if late or not may_go_on(item):
                    task.cancel()
            await asyncio.wait(set(self._under_way), timeout=POLL_INTERVAL)

    async def cancel(self) -> None:
        """End everything at once."""
        await self.drain(lambda _: False, 0)

    def _start(self, key: Hashable) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._run(key))
        self._under_way[task] = self._waiting[key][0]
        task.add_done_callback(self._ended)
        return task

    async def _run(self, key: Hashable) -> None:
        waiting = self._waiting[key]
        while True:
            await self._travel(waiting[0])
            done = waiting.popleft()
            if self._suspects:
                self._suspects.discard(done)
                break
            if not waiting or self._stopped:
                break
            task = asyncio.current_task()
            assert task is not None
            self._under_way[task] = waiting[0]
        if not waiting:
            del self._waiting[key]
        elif not self._stopped:
            self._hold(key)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._young.discard(task)
        if self._held:
            self._release()

    def _hold(self, key: Hashable) -> None:
        self._held.append(key)
        asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        if self._stopped:
            return
        if not self._suspects:
            held, self._held = self._held, []
            for key in held:
                self._start(key)
        elif self._held and not self._young:
            chosen = random.randrange(len(self._held))  # noqa: S311
            self._wait_for(self._start(self._held.pop(chosen)))

    def _wait_for(self, *tasks: "asyncio.Task[None]") -> None:
        """Start no other until these have ended, or have shown that they do not end the worker."""
        self._young.update(tasks)
        asyncio.get_running_loop().call_later(ALONE_FOR, self._no_longer, tasks)

    def _no_longer(self, tasks: tuple["asyncio.Task[None]", ...]) -> None:
        self._young.difference_update(tasks)
        self._release()
