"""Suspects: requests that may have crashed the worker before.

A request that crashes the worker returns all deliveries in flight with it. While there is a suspect, requests
start one after the other, in random order. So the others are settled in one run or the next, until the
request that crashes the worker is alone.
"""

import asyncio
import random
from collections.abc import Callable, Hashable, Iterable

# A request that crashes the worker does so at once. One that takes longer, because it waits for the gate or
# its next attempt, must not hold up all others.
ALONE_FOR = 1.0  # seconds

Task = asyncio.Task[None]


class Suspects:
    """Decides when lanes start, while there are suspects. `start(lane)` starts one."""

    def __init__(self, start: Callable[[Hashable], Task]) -> None:
        self._start = start
        self._suspects: set[Hashable] = set()
        self._held: list[Hashable] = []  # lanes that wait for their start
        self._watched: set[Task] = set()  # may still crash the worker; the next start waits for them

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._suspects)

    def add(self, item: Hashable, under_way: Iterable[Task]) -> None:
        """Suspect an item, which arrives while those tasks are under way."""
        if not self._suspects:
            self._wait_for(under_way)
        self._suspects.add(item)

    def clear(self, item: Hashable) -> None:
        """The item is settled: it did not crash the worker."""
        self._suspects.discard(item)

    def hold(self, lane: Hashable) -> None:
        """Start the lane when its turn comes."""
        self._held.append(lane)
        asyncio.get_running_loop().call_soon(self._release)

    def ended(self, task: Task) -> None:
        """A lane's task has ended."""
        self._watched.discard(task)
        if self._held:
            self._release()

    def stop(self) -> None:
        """Start no more lanes."""
        self._held.clear()

    def _release(self) -> None:
        if not self._suspects:
            held, self._held = self._held, []
            for lane in held:
                self._start(lane)
        elif self._held and not self._watched:
            chosen = random.randrange(len(self._held))  # noqa: S311
            self._wait_for([self._start(self._held.pop(chosen))])

    def _wait_for(self, tasks: Iterable[Task]) -> None:
        """Start no lane until these have ended, or have had the time to crash the worker."""
        waited_for = tuple(tasks)
        self._watched.update(waited_for)
        asyncio.get_running_loop().call_later(ALONE_FOR, self._proven, waited_for)

    def _proven(self, tasks: tuple[Task, ...]) -> None:
        self._watched.difference_update(tasks)
        self._release()
