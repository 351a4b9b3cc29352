"""`ott-worker dead-letters list`."""

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from typing import Annotated, Any, Literal

import typer

from worker.cli import output
from worker.cli.dead_letters.options import Ids, Json, Platforms, Reasons, Resources, Since, Until, select
from worker.cli.dead_letters.terminal import letters, say
from worker.cli.table import Column, TextTable
from worker.dead_letters.box import open_box
from worker.dead_letters.groups import Groups
from worker.dead_letters.selection import Selection
from worker.settings import Settings, load_settings


def _time(text: str | None) -> str:
    return "-" if text is None else text[:19].replace("T", " ")


def _minute(text: str | None) -> str:
    return _time(text)[5:16] or "-"


def _time_column(title: str, name: str, rank: int) -> Column:
    return Column(
        title, lambda row: _time(row[name]), rank=rank, shrink_to=11, short=lambda row: _minute(row[name])
    )


def resource_of(row: dict[str, Any]) -> str:
    """The resource's id, or `-`."""
    return row["resourceId"] or "-"


ID = Column("ID", lambda row: row["id"], rank=5, shrink_to=13, middle=True)
LETTER_COLUMNS = (
    Column("LETTER", lambda row: row["letter"]),
    replace(ID, rank=9, shrink_to=None),
    Column("REASON", lambda row: row["reason"], rank=1, shrink_to=10),
    _time_column("DIED (UTC)", "deadAt", rank=6),
    Column("PLATFORM", lambda row: row["ottPlatformName"] or "-", rank=7),
    Column("RESOURCE", resource_of, rank=2, shrink_to=13, middle=True),
    Column("TRIES", lambda row: str(row["attempts"]), rank=8),
    Column("ERROR", lambda row: row["error"] or "-", rank=4, shrink_to=24),
)
GROUP_COLUMNS = (
    Column("COUNT", lambda row: str(row["count"])),
    Column("REASON", lambda row: row["reason"], rank=1, shrink_to=10),
    _time_column("FIRST (UTC)", "first", rank=5),
    _time_column("LAST (UTC)", "last", rank=4),
    Column("ERROR", lambda row: row["error"] or "-", rank=3, shrink_to=24),
)


def list_letters(
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[
        Literal["error"] | None, typer.Option("--by", help="Group by reason and error, with counts.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Only the oldest N that match.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first. Changes nothing.

    Example: ott-worker dead-letters list --reason exhausted --since 2h
    """
    selection = select(reason, platform, resource, id_, since, until)
    with TextTable(GROUP_COLUMNS if by else LETTER_COLUMNS) as table:
        total, reasons = asyncio.run(_list(load_settings(), selection, table, by=by, limit=limit))
        if as_json:
            table.print_json()
        elif table.rows:
            table.print(output.width())
            counts = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
            first = "The first " if limit is not None and reasons.total() == limit < total else ""
            output.line(f"{first}{letters(reasons.total())}: {counts}")
        else:
            output.line("No dead letter matches." if total else "No dead letters.")
        output.flush()


async def _list(
    settings: Settings, selection: Selection, table: TextTable, *, by: str | None, limit: int | None
) -> tuple[int, Counter[str]]:
    """Fill the table; the depth of the queue, and the letters shown by their reasons."""
    reasons: Counter[str] = Counter()
    groups = Groups()
    async with open_box(settings, say) as box:
        total = await box.depth()
        async with contextlib.aclosing(box.look(selection)) as found:
            async for letter in found:
                if by:
                    groups.add(letter)
                else:
                    table.add(letter.summary())
                reasons[letter.reason] += 1
                if reasons.total() == limit:
                    break
    for group in groups.largest_first():
        table.add(group.summary())
    return total, reasons
