"""`ott-worker dead-letters list`."""

import asyncio
from collections import Counter
from typing import Annotated, Literal

import typer

from worker.cli import output
from worker.cli.dead_letters.options import Json, filtered
from worker.cli.dead_letters.terminal import Say, letters
from worker.cli.table import Column, Row, Table, text_of, time_of
from worker.contract.dead_letter import brief
from worker.dead_letters.groups import causes_of
from worker.dead_letters.letter import Letter, LetterFacts
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.selection import Selection
from worker.settings import Settings, load_settings


def _error(row: Row) -> str:
    return brief(row["error"]) or "-"


LETTER_COLUMNS = (
    Column("LETTER", text_of("letter")),
    Column("DIED (UTC)", time_of("deadAt"), rank=4),
    Column("REASON", text_of("reason"), rank=1),
    Column("ERROR", _error, least=24),
    Column("RESOURCE", text_of("resourceId"), rank=2),
    Column("PLATFORM", text_of("ottPlatformName"), rank=6),
    Column("TRIES", text_of("attempts"), rank=7),
    Column("REQUEST", text_of("id"), rank=8),
    Column("USER", text_of("userId"), rank=9),
)
GROUP_COLUMNS = (
    Column("COUNT", text_of("count")),
    Column("REASON", text_of("reason"), rank=1),
    Column("ERROR", _error, least=24),
    Column("FIRST (UTC)", time_of("first"), rank=3),
    Column("LAST (UTC)", time_of("last"), rank=2),
)


@filtered
def list_letters(
    selection: Selection,
    by: Annotated[
        Literal["error"] | None, typer.Option("--by", help="Group by reason and error, with counts.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Only the oldest N that match.")
    ] = None,
    as_json: Json = False,
) -> int:
    """List dead letters, oldest first. Changes nothing.

    Example: ott-worker dead-letters list --reason exhausted --since 2h
    """
    print_letters(selection, by_error=by is not None, limit=limit, as_json=as_json)
    return 0


def print_letters(
    selection: Selection, *, by_error: bool = False, limit: int | None = None, as_json: bool = False
) -> None:
    """Print the letters, or groups of them, as a table with counts or as JSON."""
    found, total = asyncio.run(_look(load_settings(), selection, limit))
    rows = (
        [cause.summary() for cause in causes_of(found, by_error=True)]
        if by_error
        else [letter.document() for letter in found]
    )
    if as_json:
        for row in rows:
            output.json_line(row)
    elif rows:
        Table(GROUP_COLUMNS if by_error else LETTER_COLUMNS, rows, output.width()).print()
        reasons = Counter(letter.reason for letter in found)
        counts = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
        first = "The first " if limit is not None and len(found) == limit < total else ""
        output.line(f"{first}{letters(len(found))}: {counts}")
    else:
        output.line("No dead letter matches." if total else "No dead letters.")
    output.flush()


async def _look(settings: Settings, selection: Selection, limit: int | None) -> tuple[list[LetterFacts], int]:
    """What is known of the letters, and the depth of the queue."""
    async with open_dead_letters(settings, Say()) as queue:
        total = await queue.depth()
        return await queue.read(selection, Letter.facts, limit), total
