"""The data of the pages: the broker's state, the last hour, the dead letters and the journal. Each is read
again only when a page needs it."""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from aiohttp import web

from worker.amqp.connection import Connection, connect
from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import JournalPage, matching, newest_first
from worker.broker.last_hour import LastHour
from worker.broker.situation import Overview, read_overview
from worker.broker.topology import Topology
from worker.console.rendering import wants_json
from worker.console.runs import ConsoleRun, Runs
from worker.contract.selection import Selection
from worker.dead_letters.letter import BY_CAUSE, Facts, Letter, causes_of
from worker.dead_letters.queue import open_dead_letters
from worker.errors import WorkerError
from worker.settings import Settings

FRESH = 5.0  # seconds; older data is shown with its age
STATE_LIFE = 1.0  # seconds that the broker's state and the last hour are reused
PAINT = 0.15  # seconds that a page waits for data; later data is shown at the next refresh
FIRST_PAINT = 1.5  # seconds that a page waits for the broker's state if the known one is old
ANSWER = 30.0  # seconds that a script waits, because it does not refresh

# Dead letters
LEAST_LIFE = 2.0  # seconds that a copy is reused, at least
SHARE = 5  # browsing the queue takes at most a fifth of the time
LONGEST_LIFE = 30.0  # seconds; a queue of the same depth may hold other letters by then
MOST_BYTES = 64_000_000  # of the copy; of more letters the newest are shown
ROW_BYTES = 800  # of a letter in the copy, without its texts
OPENED_KEPT = 8  # letters whose pages were opened last
BREATH = 100  # letters between yields to other tasks

# Searches in the journal
LOOKED_AT = 50_000  # messages per search
AT_ONCE = 4
SEARCHES_KEPT = 32

T = TypeVar("T")


@dataclass(eq=False)
class Cached(Generic[T]):
    """The last value of `read`. Concurrent callers share one reading. A value is reused for `life` seconds;
    `trouble` is why the last reading failed, or empty; `reading` is the one in progress."""

    read: Callable[[], Awaitable[T]]
    value: T
    life: float = 0.0
    as_of: datetime | None = None
    trouble: str = ""
    reading: asyncio.Task[None] | None = None
    _ended_at: float = float("-inf")
    _is_expired: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether the last reading succeeded and is at most FRESH seconds old."""
        return not self.trouble and self.age <= FRESH

    @property
    def age(self) -> float:
        """Seconds since it was read, infinite if it never was."""
        return float("inf") if self.as_of is None else (datetime.now(UTC) - self.as_of).total_seconds()

    def refresh(self) -> "asyncio.Task[None] | None":
        """The reading in progress, a new one if the value is too old, or None if the value is reused."""
        if self.reading is None and time.monotonic() - self._ended_at >= self.life:
            self.reading = asyncio.create_task(self._reading())
        return self.reading

    async def refreshed(self, timeout: float) -> None:
        """Refresh the value if it is too old; wait at most `timeout` seconds."""
        if (reading := self.refresh()) is not None:
            await asyncio.wait({reading}, timeout=max(0, timeout))

    def expire(self) -> None:
        """Read again at the next refresh. A reading in progress is repeated."""
        self._ended_at = float("-inf")
        self._is_expired = True

    async def close(self) -> None:
        """Cancel a reading in progress."""
        if self.reading is not None:
            self.reading.cancel()
            await asyncio.wait({self.reading})

    async def _reading(self) -> None:
        try:
            self._is_expired = True
            while self._is_expired:
                self._is_expired = False
                self.value = await self.read()
                self.as_of, self.trouble = datetime.now(UTC), ""
        except WorkerError as error:
            self.trouble = str(error)
        finally:
            self.reading = None
            self._ended_at = time.monotonic()


class LetterCopy:
    """A copy of the dead letter queue. `total` letters are in the queue; `rows` are the newest of them.

    Browsing a queue means consuming from it, and others must wait. So the pages show a copy. It is renewed
    when the queue's depth has changed or the copy is old, but for at most a fifth of the time. It holds no
    bodies: a letter's page reads them from the queue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._renewable_at = float("-inf")
        self._first_seen: dict[str, int] = {}
        self._opened: dict[str, Letter] = {}
        self.rows: Cached[Sequence[Facts]] = Cached(self._read, (), LEAST_LIFE)
        self.version = 0
        self.seen = 0
        self.total = 0
        self.causes: list[dict[str, Any]] = []

    @property
    def is_complete(self) -> bool:
        """Whether the queue was read completely at least once."""
        return self.rows.as_of is not None

    def expire(self) -> None:
        """The letters were changed: read them again at the next refresh."""
        self.rows.expire()
        self._opened.clear()

    def depth_is(self, depth: int | None) -> None:
        """Renew the copy if the queue's present depth differs."""
        is_due = self.rows.reading is None and time.monotonic() > self._renewable_at
        if is_due and depth not in (None, self.total):
            self.rows.expire()

    def shown(self, selection: Selection, version: str) -> list[str]:
        """The ids of the matching letters that a page of this version showed; without a version, of all that
        match."""
        newest = int(version) if version.isdecimal() else self.version
        return [
            row["letter"]
            for row in self.rows.value
            if row in selection and self._first_seen[row["letter"]] <= newest
        ]

    async def find(self, name: str) -> Letter | None:
        """The letter with this id, or the only one with this request id. Raises AmbiguousId, or WorkerError
        if the queue cannot be read."""
        if name in self._opened:
            return self._opened[name]
        selection = Selection(id=frozenset({name}))
        if self.is_complete and not self.rows.trouble and len(self.rows.value) == self.total:
            selection = Selection(id=selection.keys(row for row in self.rows.value if row in selection))
            if not selection.id:
                return None
        async with open_dead_letters(self._settings) as queue:
            found, _ = await queue.find(selection, lambda letter: letter)
        if not found:
            return None
        self._opened = dict([*self._opened.items(), (name, found[0])][-OPENED_KEPT:])
        return found[0]

    async def _read(self) -> Sequence[Facts]:
        rows: deque[Facts] = deque()
        size = 0
        async with open_dead_letters(self._settings) as queue:
            started = time.monotonic()
            self.seen, self.total = 0, await queue.depth()
            async with contextlib.aclosing(queue.look(Selection())) as letters:
                async for letter in letters:
                    row = letter.shown()
                    rows.append(row)
                    size += _size(row)
                    while size > MOST_BYTES:
                        size -= _size(rows.popleft())
                    self.seen += 1
                    if self.seen % BREATH == 0:
                        await asyncio.sleep(0)
            now = time.monotonic()
        self.total = self.seen
        self.version += 1
        self._first_seen = {row["letter"]: self._first_seen.get(row["letter"], self.version) for row in rows}
        self._opened = {name: each for name, each in self._opened.items() if each.key in self._first_seen}
        self.causes = causes_of(rows, BY_CAUSE)
        self._renewable_at = now + max(LEAST_LIFE, SHARE * (now - started))
        self.rows.life = max(LONGEST_LIFE, SHARE * (now - started))
        return tuple(rows)


def _size(row: Facts) -> int:
    return ROW_BYTES + sum(map(sys.getsizeof, (row["id"], row["error"], row["resourceId"], row["userId"])))


_Search = tuple[Selection, int, int | None]


class Sources:
    """The data of the pages, and the console's runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = Topology(settings.prefix)
        self._connections: dict[str, Connection] = {}
        self._opening = asyncio.Lock()
        self._hour = LastHour()
        self._searches: dict[_Search, Cached[JournalPage]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)
        self.state = Cached(self._read_state, Overview(settings.prefix), STATE_LIFE)
        self.last_hour = Cached(self._read_hour, self._hour, STATE_LIFE)
        self.letters = LetterCopy(settings)
        self.runs = Runs()

    async def look(self, request: web.Request, *, letters: bool = False) -> None:
        """Refresh the broker's state and, with `letters`, the copy of the letters. A browser waits only for a
        moment."""
        patience = ANSWER if wants_json(request) else PAINT
        await self.state.refreshed(patience if self.state.is_fresh else max(patience, FIRST_PAINT))
        if letters:
            self.letters.depth_is(self.state.value.queues.get("dead"))
            await self.letters.rows.refreshed(patience)

    async def search(
        self, request: web.Request, query: Selection, count: int, before: int | None = None
    ) -> Cached[JournalPage]:
        """The newest `count` records or more before an offset. A browser gets the earlier result while the
        search continues. Raises WorkerError if too many searches are in progress."""
        key = (query, count, before)
        search = self._searches.pop(key, None) or Cached(lambda: self._find(key), JournalPage())
        if len(self._searches) >= SEARCHES_KEPT:
            idle = next((key for key, each in self._searches.items() if each.reading is None), None)
            if idle is None:
                raise WorkerError("Too many searches are in progress: try again in a moment.")
            del self._searches[idle]
        self._searches[key] = search
        await search.refreshed(ANSWER if wants_json(request) else PAINT)
        return search

    def expire(self) -> None:
        """Something was changed: read the broker's state and the letters again at the next refresh."""
        self.state.expire()
        self.letters.expire()

    async def close(self) -> None:
        """End runs, readings and connections."""
        kept: list[Cached[Any]] = [self.state, self.last_hour, self.letters.rows, *self._searches.values()]
        closing: list[ConsoleRun | Cached[Any] | Connection] = [*self.runs.values(), *kept]
        for each in (*closing, *self._connections.values()):
            await each.close()

    async def _connection(self, purpose: str) -> Connection:
        """The connection for a purpose, reopened if it was lost. Raises BrokerUnreachable."""
        async with self._opening:
            connection = self._connections.get(purpose)
            if connection is None or not connection.is_open:
                connection = self._connections[purpose] = await connect(self.settings, purpose)
            return connection

    async def _read_state(self) -> Overview:
        return await read_overview(await self._connection("console"), self.names)

    async def _reader(self) -> StreamReader:
        if not self.settings.journal:
            raise WorkerError("There is no journal (OTT_JOURNAL=false).")
        return StreamReader(await self._connection("journal"), self.names.journal)

    async def _read_hour(self) -> LastHour:
        await self._hour.read(await self._reader())
        return self._hour

    async def _find(self, key: _Search) -> JournalPage:
        query, count, before = key
        search = self._searches[key]
        page, is_first = search.value, search.as_of is None
        if before is not None and not is_first:
            return page
        async with self._turns:
            reader = await self._reader()
            newest = None if is_first else await reader.last()
            if newest is None:
                page = await newest_first(reader, query, count, before=before, at_most=LOOKED_AT)
            elif newest.offset >= page.following:
                page.records[:0] = await matching(reader, query, page.following, newest.offset)
                page.following = newest.offset + 1
        del page.records[10 * count :]
        return page
