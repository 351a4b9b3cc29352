"""`ott-worker journal`."""

import asyncio
import contextlib
from typing import Annotated

import typer

from worker.broker.journal import follow, newest_first, open_journal
from worker.cli import output
from worker.cli.output import Column, Table, text_of, time_of
from worker.cli.terminal import Json, Resource, known
from worker.contract.selection import Selection
from worker.contract.settlement import why_unregistered
from worker.contract.timestamps import moment
from worker.contract.words import REASONS, STATUSES
from worker.settings import load_settings

DEFAULT_LAST = 20


def journal(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Requests' ids.")] = None,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=0, help="Default: 20, or all that match a filter.")
    ] = None,
    resource: Resource = None,
    id_: Annotated[list[str] | None, typer.Option("--id", help="A request's id.")] = None,
    status: Annotated[list[str] | None, typer.Option(help=f"{', '.join(STATUSES)}.")] = None,
    reason: Annotated[list[str] | None, typer.Option(help=f"{', '.join(REASONS)}.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Settled at a time (UTC) or later; or 2h, 3d ago.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new records as they arrive.")] = False,
    as_json: Json = False,
) -> None:
    """Show the outcomes of requests, oldest first: registered, rejected, failed or superseded, and why.

    Example: ott-worker journal --resource 1732555047025799 --since 2d"""
    selection = Selection(
        resource=frozenset(resource or ()),
        id=frozenset([*(ids or ()), *(id_ or ())]),
        status=known("--status", status, STATUSES),
        reason=known("--reason", reason, REASONS),
        since=moment(since, "--since"),
    )
    if last is None and selection.is_everything:
        last = DEFAULT_LAST
    asyncio.run(_journal(selection, last, is_following=follow, as_json=as_json))


async def _journal(selection: Selection, last: int | None, *, is_following: bool, as_json: bool) -> None:
    settings = load_settings()
    async with open_journal(settings) as reader:
        page = await newest_first(reader, selection, last)
    records = page.records[:last][::-1]
    table = Table(COLUMNS, records, output.width())
    if as_json:
        for record in records:
            output.json_line(record)
    elif records or is_following:
        table.print()
    elif last != 0:
        output.line(
            "The journal is empty." if selection.is_everything else "The journal holds no such record."
        )
    if not is_following:
        return
    output.flush()
    async with contextlib.aclosing(follow(settings, page.following)) as entries:
        async for entry in entries:
            for record in (record for record in entry.records if record in selection):
                output.json_line(record) if as_json else table.print_row(record)
            output.flush()


COLUMNS = (
    Column("DONE (UTC)", time_of("completedAt"), rank=2),
    Column("STATUS", lambda row: f"{row.get('status') or '-'}{' (replay)' if row.get('replay') else ''}"),
    Column("RESOURCE", text_of("resourceId"), rank=1),
    Column("REASON", text_of("reason"), rank=3),
    Column("ERROR", why_unregistered, least=20),
    Column("ID", text_of("id"), rank=4),
    Column("TRIES", text_of("attempts"), rank=8),
    Column("PLATFORM", text_of("ottPlatformName"), rank=7),
    Column("RECEIVED (UTC)", time_of("receivedAt"), rank=9),
    Column("ACCOUNT", text_of("accountId"), rank=10),
)
