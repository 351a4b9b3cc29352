"""`ott-worker dead-letters list`."""

import asyncio
import contextlib
from collections import Counter

from worker.cli import output
from worker.cli.dead_letters.options import Ids, Json, Platforms, Reasons, Resources, Since, Until, select
from worker.cli.dead_letters.terminal import letters
from worker.cli.table import Column, Table
from worker.dead_letters.box import open_box
from worker.dead_letters.selection import Selection
from worker.settings import Settings, load_settings

COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("REASON", lambda row: row["reason"], rank=1, shrink_to=8),
    Column(
        "DIED (UTC)",
        lambda row: _time(row["deadAt"]),
        rank=4,
        shrink_to=11,
        short=lambda row: _time(row["deadAt"])[5:16],
    ),
    Column("PLATFORM", lambda row: row["ottPlatformName"] or "-", rank=5),
    Column("RESOURCE", lambda row: row["resourceId"] or "-", rank=2, shrink_to=8),
    Column("TRIES", lambda row: str(row["attempts"]), rank=6),
    Column("ERROR", lambda row: row["error"] or "-", rank=7, shrink_to=12),
)


def _time(text: str | None) -> str:
    return "-" if text is None else text[:19].replace("T", " ")


def list_letters(
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first. Changes nothing.

    Example: ott-worker dead-letters list --reason exhausted --since 2h
    """
    selection = select(reason, platform, resource, id_, since, until)
    with Table(COLUMNS) as table:
        total, reasons = asyncio.run(_list(load_settings(), selection, table))
        if as_json:
            table.print_json()
        elif table.rows:
            table.print(output.width())
            counts = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
            output.line(f"{letters(table.rows)}: {counts}")
        else:
            output.line("No dead letter matches." if total else "No dead letters.")
        output.flush()


async def _list(settings: Settings, selection: Selection, table: Table) -> tuple[int, Counter[str]]:
    reasons: Counter[str] = Counter()
    async with open_box(settings) as box:
        total = await box.depth()
        async with contextlib.aclosing(box.look(selection)) as letters:
            async for letter in letters:
                table.add(letter.summary())
                reasons[letter.reason] += 1
    return total, reasons
