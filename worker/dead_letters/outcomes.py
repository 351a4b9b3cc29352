"""What becomes of requests that were replayed, as the journal tells."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from worker.broker.journal_reader import JournalReader, open_journal
from worker.settings import Settings

Record = Mapping[str, Any]


class Outcomes:
    """The first journal record of each awaited request, by its id. `tell` hears each of them once."""

    def __init__(self, ids: Collection[str], tell: Callable[[Record], None]) -> None:
        self._ids = frozenset(ids)
        self._tell = tell
        self._news = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.records: dict[str, Record] = {}

    async def all_of(self, ids: Collection[str]) -> None:
        """Wait until each of these has its outcome. Raises TopologyError or BrokerUnreachable where the
        journal can be read no more."""
        wanted = set(ids)
        while not self.records.keys() >= wanted:
            self._news.clear()
            if self._following is not None and self._following.done():
                self._following.result()
            await self._news.wait()

    def follow(self, reader: JournalReader, start: int) -> "asyncio.Task[None]":
        """Take the records from an offset on, until cancelled."""
        self._following = asyncio.create_task(self._follow(reader, start))
        self._following.add_done_callback(lambda _: self._news.set())
        return self._following

    async def _follow(self, reader: JournalReader, start: int) -> None:
        async with contextlib.aclosing(reader.follow(start)) as entries:
            async for entry in entries:
                for record in entry.records:
                    self._take(record)
                self._news.set()

    def _take(self, record: Record) -> None:
        request_id = str(record.get("id"))
        if request_id in self._ids and request_id not in self.records:
            self.records[request_id] = record
            self._tell(record)


@contextlib.asynccontextmanager
async def follow_outcomes(
    settings: Settings, ids: Collection[str], tell: Callable[[Record], None]
) -> AsyncIterator[Outcomes]:
    """The outcomes of these requests from now on: open it before they are replayed. Raises TopologyError or
    BrokerUnreachable."""
    outcomes = Outcomes(ids, tell)
    async with open_journal(settings) as reader:
        newest = await reader.last()
        following = outcomes.follow(reader, 0 if newest is None else newest.offset + 1)
        try:
            yield outcomes
        finally:
            following.cancel()
            await asyncio.wait({following})
