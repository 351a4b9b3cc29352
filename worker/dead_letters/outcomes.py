"""The outcomes of replays, read from the journal while the worker settles them (contract §8).

The reply of a replay goes to whoever sent the request. So a command that replays follows the journal, which
holds a record of each settled request.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from worker.broker.journal import follow, open_journal
from worker.broker.requester import look_for_workers
from worker.broker.situation import obstacle
from worker.broker.status import read_workers
from worker.contract.settlement import recorded_id
from worker.contract.timestamps import text_of
from worker.errors import BrokerUnreachable, WorkerError
from worker.settings import Settings

POLL_INTERVAL = 0.1  # seconds
LOOK_INTERVAL = 1.0  # seconds without an outcome before looking for workers
ABSENT_LOOKS = 2  # looks that find no worker before giving up

Record = dict[str, Any]
Tell = Callable[[str, Record], None]
"""Called with a letter's id and the record of its replay."""


class _Expected(NamedTuple):
    key: str
    received_at: str
    resource_id: str | None


class OutcomeFollower:
    """Follows the journal while its context lasts. `outcomes` are the records of the expected replays by the
    ids of their letters, in the order in which they came; `tell` is called with each. Entering raises
    TopologyError (there is no journal) or BrokerUnreachable."""

    def __init__(self, settings: Settings, tell: Tell = lambda *_: None) -> None:
        self.outcomes: dict[str, Record] = {}
        self._tell = tell
        self._settings = settings
        self._expected: dict[str, list[_Expected]] = {}
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        async with open_journal(self._settings) as reader:
            newest = await reader.last()
        self._next = 0 if newest is None else newest.offset + 1
        self._task = asyncio.create_task(self._follow(), name="outcomes")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def missing(self) -> int:
        """Replays whose outcome is not known yet."""
        return sum(map(len, self._expected.values()))

    def expect(self, key: str, request_id: str, received_at: int, resource_id: str | None) -> None:
        """Expect the replay of the letter `key`, by what its record will tell."""
        name = recorded_id(request_id).encode(errors="replace").decode()
        expected = _Expected(key, text_of(received_at), resource_id and recorded_id(resource_id))
        self._expected.setdefault(name, []).append(expected)

    async def wait(self, stop: asyncio.Event, say: Callable[[str], None]) -> bool:
        """Wait until all outcomes are known, and `say` once what this waits for. False where `stop` was set,
        or no worker is there to settle them."""
        clock = asyncio.get_running_loop().time
        known, look_at, absent = 0, clock() + LOOK_INTERVAL, 0
        said = {""}
        while self._expected and not stop.is_set() and absent < ABSENT_LOOKS:
            await asyncio.sleep(POLL_INTERVAL)
            if len(self.outcomes) > known:
                known, look_at, absent = len(self.outcomes), clock() + LOOK_INTERVAL, 0
            elif clock() > look_at:
                look_at = clock() + LOOK_INTERVAL
                is_there, why = await self._workers()
                absent = 0 if is_there else absent + 1
                if why not in said:
                    said.add(why)
                    say(why)
        return not self._expected

    async def _workers(self) -> tuple[bool, str]:
        """Whether any worker runs, and why it takes long."""
        with contextlib.suppress(WorkerError):
            if why := obstacle(await read_workers(self._settings)):
                return True, why[:1].lower() + why[1:].rstrip(".")
        try:
            return await look_for_workers(self._settings) > 0, ""
        except BrokerUnreachable:
            return True, "RabbitMQ does not answer: waiting"

    async def _follow(self) -> None:
        async with contextlib.aclosing(follow(self._settings, self._next)) as entries:
            async for entry in entries:
                for record in entry.records:
                    self._take(record)

    def _take(self, record: Record) -> None:
        request_id = str(record.get("id"))
        bearers = self._expected.get(request_id)
        if record.get("replay") is not True or not bearers:
            return
        # Several letters may bear one request id. Their times of arrival differ, or at least their resources.
        told = (record.get("receivedAt"), record.get("resourceId"))
        best = max(bearers, key=lambda each: (each.received_at == told[0], each.resource_id == told[1]))
        bearers.remove(best)
        if not bearers:
            del self._expected[request_id]
        self.outcomes[best.key] = record
        self._tell(best.key, record)
