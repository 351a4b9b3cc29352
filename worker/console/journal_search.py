"""What the journal tells of requests, newest first, looked for from its end backwards."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.amqp.stream_reader import StreamReader
from worker.broker.journal import open_journal
from worker.contract.journal_record import recorded_id
from worker.errors import WorkerError
from worker.settings import Settings

STEPS = (500, 5_000, 45_000)  # messages; how much further back each step goes
KEPT = 32  # searches
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records; an empty text matches all. `before` is an offset of the journal."""

    id: str = ""
    resource: str = ""
    platform: str = ""
    account: str = ""
    status: str = ""
    reason: str = ""
    before: int | None = None

    def matches(self, record: Record) -> bool:
        """Whether a record is one of them."""
        return all(
            not value or record.get(name) == value
            for name, value in (
                ("id", recorded_id(self.id)),
                ("resourceId", recorded_id(self.resource)),
                ("ottPlatformName", self.platform),
                ("accountId", self.account),
                ("status", self.status),
                ("reason", self.reason),
            )
        )


@dataclass(slots=True)
class Found:
    """Matching records, newest first, in all messages from the offset `back_to` on; `is_all` where the
    journal keeps nothing older. `problem` is why it could not be read, empty where it could."""

    records: list[Record] = field(default_factory=list)
    back_to: int = 0
    following: int = 0
    is_all: bool = True
    is_complete: bool = True
    problem: str = ""


class JournalSearch:
    """Searches, kept so that a page that is shown again reads only what is new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[tuple[Wanted, int], Found] = OrderedDict()
        self._tasks: dict[tuple[Wanted, int], asyncio.Task[Found]] = {}

    async def find(self, wanted: Wanted, count: int, timeout: float) -> Found:
        """At least `count` records, unless the last messages hold fewer. After `timeout` seconds what
        was found before, while the search goes on."""
        if not self._settings.journal:
            return Found(problem="There is no journal (OTT_JOURNAL=false).")
        key = (wanted, count)
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._find(wanted, count))
            task.add_done_callback(lambda _: self._tasks.pop(key))
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            return self._kept.get(key) or Found(is_complete=False)
        try:
            return task.result()
        except WorkerError as error:
            return Found(problem=str(error))

    async def close(self) -> None:
        """End the searches that are under way."""
        for task in list(self._tasks.values()):
            task.cancel()
            await asyncio.wait({task})

    async def _find(self, wanted: Wanted, count: int) -> Found:
        found = self._kept.get((wanted, count))
        if found is not None and wanted.before is not None:
            return found
        async with open_journal(self._settings) as reader:
            newest = await reader.last()
            if newest is None:
                return Found()
            if found is None:
                found = await _backwards(reader, wanted, count, newest.offset)
            elif newest.offset >= found.following:
                newer = await _window(reader, wanted, found.following, newest.offset)
                found.records[:0] = newer
                found.following = newest.offset + 1
        self._keep((wanted, count), found)
        return found

    def _keep(self, key: tuple[Wanted, int], found: Found) -> None:
        del found.records[10 * key[1] :]
        self._kept[key] = found
        self._kept.move_to_end(key)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


async def _backwards(reader: StreamReader, wanted: Wanted, count: int, newest: int) -> Found:
    first = await reader.first()
    oldest = 0 if first is None else first.offset
    end = newest + 1 if wanted.before is None else min(wanted.before, newest + 1)
    found = Found(back_to=end, following=newest + 1)
    for step in STEPS:
        start = max(oldest, found.back_to - step)
        if start < found.back_to:
            found.records += await _window(reader, wanted, start, found.back_to - 1)
            found.back_to = start
        if len(found.records) >= count or start <= oldest:
            break
    found.is_all = found.back_to <= oldest
    return found


async def _window(reader: StreamReader, wanted: Wanted, start: int, last: int) -> list[Record]:
    records: list[Record] = []
    async with contextlib.aclosing(reader.read(start, reach=last)) as entries:
        async for entry in entries:
            if entry.offset > last:
                break
            records += [record for record in entry.records if wanted.matches(record)]
    return records[::-1]
