"""`ott-worker journal`."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, get_args

import typer

from worker.amqp.stream_reader import Entries, Entry, Start, StreamReader
from worker.broker.journal import open_journal
from worker.cli import output
from worker.cli.table import Column, TextTable
from worker.contract.journal_record import recorded_id
from worker.contract.timestamps import microseconds
from worker.contract.words import Reason, Status
from worker.dead_letters.selection import moment
from worker.errors import UsageError
from worker.settings import Settings, load_settings

DEFAULT_LAST = 20
CLOCKS_DIFFER = timedelta(minutes=5)  # the broker's and the workers'; the stream is read from so much earlier

FIELDS = ("id", "status", "ottPlatformName", "resourceId", "receivedAt", "completedAt")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The records that were asked for; `last` of them, or all. `since` is in microseconds since the epoch."""

    last: int | None
    resources: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    statuses: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    since: int | None = None

    def of(self, entry: Entry) -> Iterator[dict[str, Any]]:
        for record in entry.records:
            if self._matches(record):
                yield {**dict.fromkeys(FIELDS), **record}

    def _matches(self, record: dict[str, Any]) -> bool:
        completed = microseconds(str(record.get("completedAt"))) if self.since is not None else None
        return (
            (not self.resources or record.get("resourceId") in self.resources)
            and (not self.ids or record.get("id") in self.ids)
            and (not self.statuses or record.get("status") in self.statuses)
            and (not self.reasons or record.get("reason") in self.reasons)
            and (self.since is None or (completed is not None and completed >= self.since))
        )

    @property
    def is_filtered(self) -> bool:
        return self != _Wanted(self.last)

    def start(self, newest: int, window: int) -> Start:
        """Where to begin in a stream that ends with the offset `newest`: for the last records alone so many
        messages before its end."""
        if self.since is not None:
            return datetime.fromtimestamp(self.since / 1_000_000, UTC) - CLOCKS_DIFFER
        if self.is_filtered:
            return "first"
        return max(0, newest - window + 1)


def journal(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Requests' ids.")] = None,
    last: Annotated[
        int | None,
        typer.Option("--last", "-n", min=0, help="Records; by default 20, or all that a filter finds."),
    ] = None,
    resource: Annotated[list[str] | None, typer.Option("--resource", help="pageId or channelId.")] = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="A request's id.")] = None,
    status: Annotated[
        list[str] | None, typer.Option("--status", help="registered, rejected, failed or superseded.")
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option("--reason", help="invalid, rejected, exhausted, forbidden or oversize."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Settled since a time (UTC), or a while ago: 2h, 3d."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print further records as they come.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what became of requests, oldest first: registered, rejected, failed or superseded, and why.

    Example: ott-worker journal --resource 1732555047025799 --since 2d
    """
    wanted = _Wanted(
        last=last,
        resources=frozenset(map(recorded_id, resource or ())),
        ids=frozenset(map(recorded_id, [*(ids or ()), *(id_ or ())])),
        statuses=_known("--status", status, get_args(Status)),
        reasons=_known("--reason", reason, get_args(Reason)),
        since=moment(since, "--since"),
    )
    if last is None and not wanted.is_filtered:
        wanted = replace(wanted, last=DEFAULT_LAST)
    asyncio.run(_journal(load_settings(), wanted, follow=follow, as_json=as_json))
    output.flush()


def _known(option: str, given: list[str] | None, known: tuple[str, ...]) -> frozenset[str]:
    if not set(known).issuperset(given or ()):
        raise UsageError(f"{option} must be one of {', '.join(known)}")
    return frozenset(given or ())


async def _journal(settings: Settings, wanted: _Wanted, *, follow: bool, as_json: bool) -> None:
    async with open_journal(settings) as reader:
        records, following = await _so_far(reader, wanted)
        with TextTable(COLUMNS) as table:
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


async def _so_far(reader: StreamReader, wanted: _Wanted) -> tuple[deque[dict[str, Any]], int]:
    """The records that are there, and the offset that comes next."""
    newest, first = await reader.last(), await reader.first()
    if newest is None or first is None:
        return deque(), 0
    window = wanted.last or 0
    while True:
        start = wanted.start(newest.offset, window)
        records, following = await _from(start, reader, wanted, newest.offset)
        is_all = not isinstance(start, int) or start <= first.offset
        if is_all or len(records) >= (wanted.last or 0):
            return records, following
        window *= 2  # some messages hold no record


async def _from(
    start: Start, reader: StreamReader, wanted: _Wanted, reach: int
) -> tuple[deque[dict[str, Any]], int]:
    records: deque[dict[str, Any]] = deque(maxlen=wanted.last)
    following = reach + 1
    async with contextlib.aclosing(reader.read(start, reach=reach)) as entries:
        async for entry in entries:
            following = entry.offset + 1
            records.extend(wanted.of(entry))
    return records, following


async def _follow(entries: Entries, wanted: _Wanted, table: TextTable, *, as_json: bool) -> None:
    async for entry in entries:
        for record in wanted.of(entry):
            if as_json:
                output.json_line(record)
            else:
                table.print_row(record)
        output.flush()


def _time(text: object) -> str:
    return text[:19].replace("T", " ") if isinstance(text, str) else "-"


def _error(row: dict[str, Any]) -> str:
    errors = row.get("errors")
    messages = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    return f"{row.get('errorcode') or ''} {messages}".strip() or "-"


COLUMNS = (
    Column(
        "DONE (UTC)",
        lambda row: _time(row.get("completedAt")),
        rank=4,
        shrink_to=11,
        short=lambda row: _time(row.get("completedAt"))[5:16],
    ),
    Column("STATUS", lambda row: str(row.get("status") or "-")),
    Column("ID", lambda row: str(row.get("id") or "-"), rank=5, shrink_to=13, middle=True),
    Column("RESOURCE", lambda row: str(row.get("resourceId") or "-"), rank=1, shrink_to=13, middle=True),
    Column("PLATFORM", lambda row: str(row.get("ottPlatformName") or "-"), rank=7),
    Column("ACCOUNT", lambda row: str(row.get("accountId") or "-"), rank=10),
    Column("REASON", lambda row: str(row.get("reason") or "-"), rank=3, shrink_to=9),
    Column("ERROR", _error, rank=2, shrink_to=24),
    Column("TRIES", lambda row: str(row.get("attempts", "-")), rank=8),
    Column("RECEIVED (UTC)", lambda row: _time(row.get("receivedAt")), rank=9),
)
