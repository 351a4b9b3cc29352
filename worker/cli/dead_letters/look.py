"""`ott-worker dead-letters list`, `show` and `export`: looking, which changes nothing."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

import typer

from worker.cli import output
from worker.cli.options import Json, filtered
from worker.cli.output import Column, Table, text_of, time_of
from worker.cli.terminal import Say, letters
from worker.contract.settlement import brief
from worker.dead_letters.facts import Selection, causes_of, few
from worker.dead_letters.letter import Letter
from worker.dead_letters.queue import open_dead_letters
from worker.errors import UsageError
from worker.settings import Settings, load_settings

Found = TypeVar("Found")


def _error(row: Any) -> str:
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
    found, total = asyncio.run(_look(selection, Letter.facts, Say(), limit))
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
        is_cut = len(found) == limit and limit < total
        output.line(f"{'The first ' if is_cut else ''}{letters(len(found))}: {counts}")
    else:
        output.line("No dead letter matches." if total else "No dead letters.")
    output.flush()


async def _look(
    selection: Selection, row: Callable[[Letter], Found], say: Say, limit: int | None = None
) -> tuple[list[Found], int]:
    """The letters that match, each as `row` makes it, and the depth of the queue."""
    async with open_dead_letters(load_settings(), say) as queue:
        total = await queue.depth()
        return await queue.read(selection, row, limit), total


NEXT = {
    "discard": ("oversize", "expired", "maxlen"),
    "replay --set FIELD=VALUE": ("invalid", "rejected"),
}


@filtered
def show(
    selection: Selection,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print all values, secrets too.")] = False,
    as_json: Json = False,
) -> int:
    """Show dead letters whole: properties, headers, body. Changes nothing.

    Values of fields that may hold a secret show their type and length only.

    Example: ott-worker dead-letters show a1f2c0a52d0b14a5
    """
    if selection.is_everything:
        raise UsageError("show wants the id of a dead letter, or a filter: see ott-worker dead-letters list")
    from worker.broker.situation import advice  # noqa: PLC0415 # `list` needs none of it
    from worker.dead_letters.view import as_text, view  # noqa: PLC0415

    say = Say()
    found, _ = asyncio.run(_look(selection, lambda letter: letter, say))
    found = selection.named(found)
    missing = selection.missing(found)
    if missing or not found:
        say(f"no dead letter matches {few(missing)}".rstrip())
    for number, letter in enumerate(found):
        document = view(letter, reveal=reveal)
        if as_json:
            output.json_line(document)
            continue
        for line in (*[""][: bool(number)], *as_text(document)):
            output.line(line)
        output.line(f"next: {advice(letter.reason)}")
        output.line(f"  ott-worker dead-letters {_next(letter)}")
    output.flush()
    return 0 if found and not missing else 1


def _next(letter: Letter) -> str:
    command = next((command for command, reasons in NEXT.items() if letter.reason in reasons), "replay")
    name, _, more = command.partition(" ")
    return f"{name} {letter.key} {more}".rstrip()


@filtered
def export(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="The file to write. Only you can read it.")],
    selection: Selection,
    reveal: Annotated[bool, typer.Option("--reveal", help="Write the values of secrets too.")] = False,
) -> int:
    """Write dead letters to a CSV file, one row each: correct it in a spreadsheet, then replay --patch FILE.

    Changes nothing in the queue. A cell that is left as it is, or emptied, changes nothing either.

    Example: ott-worker dead-letters export letters.csv --reason rejected
    """
    settings = load_settings()
    try:
        # A file that is there already may be open to others.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            os.fchmod(opened.fileno(), 0o600)
            count = asyncio.run(_export(settings, selection, opened, reveal=reveal))
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    output.line(f"{letters(count)} written to {file}.")
    return 1 if selection.ids and not count else 0


async def _export(settings: Settings, selection: Selection, file: BinaryIO, *, reveal: bool) -> int:
    from worker.dead_letters.table import header, row  # noqa: PLC0415 # with spreadsheets, and costly to import

    count = 0
    async with open_dead_letters(settings, Say()) as queue:
        if selection.ids:
            keys = selection.named(await queue.read(selection, Letter.facts))
            selection = Selection(ids=frozenset(each.key for each in keys))
        file.write(header())
        async with contextlib.aclosing(queue.look(selection)) as found:
            async for letter in found:
                file.write(row(letter, reveal=reveal))
                count += 1
    return count
