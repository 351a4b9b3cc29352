"""`ott-worker journal`."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from worker.broker.journal_reader import Entries, Entry, JournalReader, Start, open_journal
from worker.cli import output
from worker.cli.table import Column, Table
from worker.settings import Settings, load_settings

DEFAULT_LAST = 20

FIELDS = ("id", "status", "ottPlatformName", "resourceId", "receivedAt", "completedAt")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The records that were asked for; `last` of them, or all."""

    resources: frozenset[str]
    ids: frozenset[str]
    last: int | None

    def of(self, entry: Entry) -> Iterator[dict[str, Any]]:
        for record in entry.records:
            if self.resources and record.get("resourceId") not in self.resources:
                continue
            if self.ids and record.get("id") not in self.ids:
                continue
            yield {**dict.fromkeys(FIELDS), **record}

    @property
    def is_filtered(self) -> bool:
        return bool(self.resources or self.ids)


def journal(
    last: Annotated[
        int | None,
        typer.Option("--last", "-n", min=0, help="Records; by default 20, or all that a filter finds."),
    ] = None,
    resource: Annotated[list[str] | None, typer.Option("--resource", help="pageId or channelId.")] = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="The request's id.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as requests are settled.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what became of requests, oldest first: registered, rejected, failed or superseded.

    Example: ott-worker journal --resource 1732555047025799
    """
    filtered = bool(resource or id_)
    count = DEFAULT_LAST if last is None and not filtered else last
    wanted = _Wanted(frozenset(resource or ()), frozenset(id_ or ()), count)
    asyncio.run(_journal(load_settings(), wanted, follow=follow, as_json=as_json))
    output.flush()


async def _journal(settings: Settings, wanted: _Wanted, *, follow: bool, as_json: bool) -> None:
    async with open_journal(settings) as reader:
        records, following = await _so_far(reader, wanted)
        with Table(COLUMNS) as table:
            for record in records:
                table.add(record)
            if as_json:
                table.print_json()
            elif records or follow:
                table.print(output.width())
            elif wanted.last != 0:
                nothing = (
                    "The journal holds no such record." if wanted.is_filtered else "The journal is empty."
                )
                output.line(nothing)
        if follow:
            output.flush()
            async with contextlib.aclosing(reader.follow(following)) as entries:
                await _follow(entries, wanted, table, as_json=as_json)


async def _so_far(reader: JournalReader, wanted: _Wanted) -> tuple[deque[dict[str, Any]], int]:
    """The records that are there, and the offset that comes next."""
    records: deque[dict[str, Any]] = deque(maxlen=wanted.last)
    newest = await reader.last()
    if newest is None:
        return records, 0
    start: Start = "first"
    if not wanted.is_filtered:
        # Each message holds at least one record.
        start = max(0, newest.offset - (wanted.last or 0) + 1)
    following = newest.offset + 1
    async with contextlib.aclosing(reader.read(start, reach=newest.offset)) as entries:
        async for entry in entries:
            following = entry.offset + 1
            records.extend(wanted.of(entry))
    return records, following


async def _follow(entries: Entries, wanted: _Wanted, table: Table, *, as_json: bool) -> None:
    async for entry in entries:
        for record in wanted.of(entry):
            if as_json:
                output.json_line(record)
            else:
                table.print_row(record)
        output.flush()


def _time(text: object) -> str:
    return text[:19].replace("T", " ") if isinstance(text, str) else "-"


COLUMNS = (
    Column(
        "DONE (UTC)",
        lambda row: _time(row.get("completedAt")),
        rank=3,
        shrink_to=11,
        short=lambda row: _time(row.get("completedAt"))[5:16],
    ),
    Column("STATUS", lambda row: str(row.get("status") or "-")),
    Column("ID", lambda row: str(row.get("id") or "-")),
    Column("RESOURCE", lambda row: str(row.get("resourceId") or "-"), rank=1, shrink_to=8),
    Column("PLATFORM", lambda row: str(row.get("ottPlatformName") or "-"), rank=5),
    Column("ACCOUNT", lambda row: str(row.get("accountId") or "-"), rank=8),
    Column("REASON", lambda row: str(row.get("reason") or "-"), rank=4),
    Column("TRIES", lambda row: str(row.get("attempts", "-")), rank=6),
    Column("CODE", lambda row: str(row.get("errorcode") or "-"), rank=6),
    Column("RECEIVED (UTC)", lambda row: _time(row.get("receivedAt")), rank=7),
)
