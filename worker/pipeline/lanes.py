"""Lanes: requests for one resource are processed one after the other, those for different resources
concurrently (contract §2).

When a request crashes the worker, all deliveries in flight are requeued. So while there are suspects, lanes
start one at a time, in random order: the innocent requests are settled in this run or a later one, until only
the request that crashes the worker is left."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

Task = asyncio.Task[None]

POLL_INTERVAL = 0.05  # seconds, while draining
# A request that crashes the worker crashes it within this time. One that takes longer (it waits for the gate
# or its next attempt) must not hold up all others.
ALONE_FOR = 1.0  # seconds


class Lanes(Generic[Item]):
    """Runs `process(item)` for each item, one at a time within a lane. `pick` chooses a lane's next item, by
    default the first. A lane exists while it has items."""

    def __init__(
        self,
        process: Callable[[Item], Awaitable[None]],
        pick: Callable[[Sequence[Item]], Item] = lambda waiting: waiting[0],
    ) -> None:
        self._process = process
        self._pick = pick
        self._waiting: dict[Hashable, deque[Item]] = {}
        self._running: dict[Task, list[Item]] = {}  # the item that each task processes
        self._suspects: set[Item] = set()
        self._held: list[Hashable] = []  # lanes that do not start yet, because of a suspect
        self._watched: set[Task] = set()  # may crash the worker; the next start waits for them
        self.is_stopped = False

    def __len__(self) -> int:
        """The number of lanes."""
        return len(self._waiting)

    @property
    def items(self) -> list[Item]:
        """All unfinished items."""
        return [item for waiting in self._waiting.values() for item in waiting]

    def put(self, lane: Hashable | None, item: Item, *, suspect: bool = False) -> None:
        """Add an item to the end of its lane; without a lane it waits for no other. A `suspect` may have
        crashed the worker before."""
        if self.is_stopped:
            return
        key = object() if lane is None else lane
        if suspect:
            if not self._suspects:
                self._watch(self._running)
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

    def behind(self, lane: Hashable) -> list[Item]:
        """The items behind the first one; none while there are suspects."""
        return [] if self._suspects else list(self._waiting[lane])[1:]

    def drop(self, lane: Hashable, items: Sequence[Item]) -> None:
        """Remove items that ended without being processed."""
        gone, waiting = set(items), self._waiting[lane]
        kept = [item for item in waiting if item not in gone]
        waiting.clear()
        waiting.extend(kept)

    async def drain(self, may_go_on: Callable[[Item], bool], grace: float) -> None:
        """Start no more items, and return when all have ended. Items for which `may_go_on` is true have
        `grace` seconds; the others are cancelled at once."""
        self.is_stopped = True
        self._held.clear()
        deadline = asyncio.get_running_loop().time() + grace
        while self._running:
            late = asyncio.get_running_loop().time() >= deadline
            for task, [item] in self._running.items():
                if late or not may_go_on(item):
                    task.cancel()
            await asyncio.wait(set(self._running), timeout=POLL_INTERVAL)

    async def cancel(self) -> None:
        """Cancel all at once."""
        await self.drain(lambda _: False, 0)

    def _start(self, key: Hashable) -> Task:
        at = [self._waiting[key][0]]
        task = asyncio.create_task(self._run(key, at))
        self._running[task] = at
        task.add_done_callback(self._ended)
        return task

    async def _run(self, key: Hashable, at: list[Item]) -> None:
        waiting = self._waiting[key]
        while waiting and not self.is_stopped:
            item = at[0] = waiting[0] if self._suspects else self._pick(waiting)
            await self._process(item)
            waiting.remove(item)
            if self._suspects:
                self._suspects.discard(item)
                break  # for the lane's next item, the lane starts again, among the others
        if not waiting:
            del self._waiting[key]
        elif not self.is_stopped:
            self._hold(key)

    def _ended(self, task: Task) -> None:
        del self._running[task]
        self._watched.discard(task)
        if self._held:
            self._release()

    def _hold(self, key: Hashable) -> None:
        self._held.append(key)
        asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        if not self._suspects:
            held, self._held = self._held, []
            for key in held:
                self._start(key)
        elif self._held and not self._watched:
            chosen = random.randrange(len(self._held))  # noqa: S311
            self._watch([self._start(self._held.pop(chosen))])

    def _watch(self, tasks: Iterable[Task]) -> None:
        """Start no lane until these tasks have ended or have run for ALONE_FOR."""
        watched = tuple(tasks)
        self._watched.update(watched)
        asyncio.get_running_loop().call_later(ALONE_FOR, self._proven, watched)

    def _proven(self, tasks: tuple[Task, ...]) -> None:
        self._watched.difference_update(tasks)
        self._release()
