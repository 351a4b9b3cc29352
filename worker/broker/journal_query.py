"""Looking for records in the journal: the newest first, or as they come."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.amqp.stream_reader import Entry, Start, StreamReader
from worker.broker.journal import open_journal
from worker.contract.settlement import recorded_id
from worker.contract.timestamps import microseconds
from worker.errors import WorkerError
from worker.settings import Settings

FIRST_STEP = 500  # messages; each further step back is ten times as long
CLOCKS_DIFFER = timedelta(minutes=5)  # the broker's and the workers'; the stream is read from so much earlier
RECONNECT_INTERVAL = 1.0  # seconds

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class JournalQuery:
    """Records that match every filter given; of several values of one filter, one has to match. `since` is
    about when a request was settled (microseconds since the epoch, included)."""

    ids: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    platforms: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    statuses: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    since: int | None = None

    @property
    def is_everything(self) -> bool:
        return self == JournalQuery()

    def __contains__(self, record: Record) -> bool:
        return all(
            not wanted or record.get(name) in wanted
            for name, wanted in (
                ("id", {recorded_id(each) for each in self.ids}),
                ("resourceId", {recorded_id(each) for each in self.resources}),
                ("ottPlatformName", self.platforms),
                ("accountId", self.accounts),
                ("status", self.statuses),
                ("reason", self.reasons),
            )
        ) and (self.since is None or (microseconds(str(record.get("completedAt"))) or 0) >= self.since)


@dataclass(slots=True)
class JournalPage:
    """Matching records, the newest first, in all messages from the offset `back_to` on; `is_all` where the
    journal keeps nothing older. `following` is the offset behind the last message."""

    records: list[Record] = field(default_factory=list)
    back_to: int = 0
    following: int = 0
    is_all: bool = True


async def newest_first(
    reader: StreamReader,
    query: JournalQuery,
    count: int | None,
    *,
    before: int | None = None,
    at_most: int | None = None,
) -> JournalPage:
    """The newest `count` records or a few more, all where that is None. Begins before the offset `before`,
    and goes back over `at_most` messages. Raises as StreamReader does."""
    newest, first = await reader.last(), await reader.first()
    if newest is None or first is None:
        return JournalPage()
    end = newest.offset + 1 if before is None else min(before, newest.offset + 1)
    page = JournalPage(back_to=end, following=newest.offset + 1)
    step = FIRST_STEP
    while page.back_to > first.offset and (count is None or len(page.records) < count):
        if at_most is not None and end - page.back_to >= at_most:
            break
        start = first.offset if count is None else max(first.offset, page.back_to - step)
        if query.since is not None:
            at = datetime.fromtimestamp(query.since / 1_000_000, UTC) - CLOCKS_DIFFER
            page.records = await matching(reader, query, at, end - 1)
            start = first.offset
        else:
            page.records += await matching(reader, query, start, page.back_to - 1)
        page.back_to, step = start, step * 10
    page.is_all = page.back_to <= first.offset
    return page


async def matching(reader: StreamReader, query: JournalQuery, start: Start, last: int) -> list[Record]:
    """The matching records from `start` to the offset `last`, the newest first."""
    entries = reader.read(start, last + 1)
    records: list[Record] = [record async for entry in entries for record in entry.records if record in query]
    return records[::-1]


async def follow(
    settings: Settings, start: int, say: Callable[[str], None] = lambda _: None
) -> AsyncGenerator[Entry, None]:
    """The entries from the offset `start` on, as they come and for as long as this is iterated. `say` is told
    why the journal cannot be read for a while."""
    while True:
        try:
            async with (
                open_journal(settings) as reader,
                contextlib.aclosing(reader.follow(start)) as entries,
            ):
                async for entry in entries:
                    start = entry.offset + 1
                    yield entry
        except (WorkerError, ConnectionError) as error:
            say(f"{error}: trying again")
        await asyncio.sleep(RECONNECT_INTERVAL)
