"""What the journal tells of requests, newest first: searches that are shared and kept for the pages."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from worker.broker.journal import open_journal
from worker.broker.journal_query import JournalPage, JournalQuery, Record, matching, newest_first
from worker.errors import WorkerError
from worker.settings import Settings

AT_MOST = 50_000  # messages that one search looks at
AT_ONCE = 4  # searches
KEPT = 32  # searches


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found; `is_complete` is false while it goes on, `problem` is why it could not be
    made."""

    page: JournalPage = field(default_factory=JournalPage)
    is_complete: bool = True
    problem: str = ""

    @property
    def records(self) -> list[Record]:
        return self.page.records


_Key = tuple[JournalQuery, int | None, int]


class JournalSearch:
    """Searches, kept so that a page that is shown again reads only what is new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[_Key, JournalPage] = OrderedDict()
        self._tasks: dict[_Key, asyncio.Task[JournalPage]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def find(self, query: JournalQuery, count: int, timeout: float, before: int | None = None) -> Found:
        """The newest `count` records or more, before an offset. After `timeout` seconds what was found
        before, while the search goes on."""
        if not self._settings.journal:
            return Found(problem="There is no journal (OTT_JOURNAL=false).")
        key = (query, before, count)
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= KEPT:
                return Found(problem="Too many searches are under way: try again in a moment.")
            task = self._tasks[key] = asyncio.create_task(self._find(key))
            task.add_done_callback(lambda _: self._tasks.pop(key))
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            return Found(self._kept[key]) if key in self._kept else Found(is_complete=False)
        try:
            return Found(task.result())
        except WorkerError as error:
            return Found(problem=str(error))

    async def close(self) -> None:
        """End the searches that are under way."""
        for task in list(self._tasks.values()):
            task.cancel()
            await asyncio.wait({task})

    async def _find(self, key: _Key) -> JournalPage:
        query, before, count = key
        page = self._kept.get(key)
        if page is not None and before is not None:
            return page
        async with self._turns, open_journal(self._settings) as reader:
            newest = None if page is None else await reader.last()
            if page is None or newest is None:
                page = await newest_first(reader, query, count, before=before, at_most=AT_MOST)
            elif newest.offset >= page.following:
                page.records[:0] = await matching(reader, query, page.following, newest.offset)
                page.following = newest.offset + 1
        del page.records[10 * count :]
        self._kept[key] = page
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return page
