"""The outcomes of replays, read from the journal while the worker settles them (contract §8).

The reply of a replay goes to whoever sent the request. So a command that replays follows the journal, which
holds a record of each settled request.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import open_journal
from worker.broker.request_sender import look_for_workers
from worker.broker.situation import obstacle
from worker.broker.status_stream import read_workers
from worker.errors import BrokerUnreachable, WorkerError
from worker.settings import Settings

POLL_INTERVAL = 0.1  # seconds
LOOK_INTERVAL = 1.0  # seconds without an outcome before looking for workers
ABSENT_LOOKS = 2  # looks that find no worker before giving up
RECONNECT_INTERVAL = 1.0  # seconds

Record = dict[str, Any]


class OutcomeFollower:
    """Follows the journal while its context lasts. `records` are those of the expected replays, as they came;
    `tell` is called with each. Entering raises TopologyError (there is no journal) or BrokerUnreachable."""

    def __init__(self, settings: Settings, tell: Callable[[Record], None] = lambda _: None) -> None:
        self.records: list[Record] = []
        self._tell = tell
        self._settings = settings
        self._expected: Counter[str] = Counter()
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
        return self._expected.total()

    def expect(self, request_id: str) -> None:
        """Expect one replay of this request."""
        self._expected[request_id] += 1

    async def wait(self, stop: asyncio.Event, say: Callable[[str], None]) -> bool:
        """Wait until all outcomes are known, and `say` once what this waits for. False where `stop` was set,
        or no worker is there to settle them."""
        clock = asyncio.get_running_loop().time
        known, look_at, absent = 0, clock() + LOOK_INTERVAL, 0
        said = {""}
        while self._expected and not stop.is_set() and absent < ABSENT_LOOKS:
            await asyncio.sleep(POLL_INTERVAL)
            if len(self.records) > known:
                known, look_at, absent = len(self.records), clock() + LOOK_INTERVAL, 0
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
        while True:
            with contextlib.suppress(WorkerError, ConnectionError):
                async with open_journal(self._settings) as reader:
                    await self._read(reader)
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _read(self, reader: StreamReader) -> None:
        async with contextlib.aclosing(reader.follow(self._next)) as entries:
            async for entry in entries:
                self._next = entry.offset + 1
                for record in entry.records:
                    self._take(record)

    def _take(self, record: Record) -> None:
        request_id = record.get("id")
        if record.get("replay") is not True or not self._expected.get(str(request_id)):
            return
        self._expected[str(request_id)] -= 1
        self._expected += Counter()  # drops what is no longer expected
        self.records.append(record)
        self._tell(record)
