"""`ott-worker dead-letters export`."""

import asyncio
import contextlib
import os
from typing import Annotated, BinaryIO

import typer

from worker.cli import output
from worker.cli.dead_letters.options import filtered
from worker.cli.dead_letters.terminal import Say, letters
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.selection import Selection
from worker.dead_letters.table import header, row
from worker.errors import UsageError
from worker.settings import Settings, load_settings


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
    count = 0
    async with open_dead_letters(settings, Say()) as queue:
        if selection.ids:
            keys = selection.named(await queue.read(selection, lambda letter: letter))
            selection = Selection(ids=frozenset(each.key for each in keys))
        file.write(header())
        async with contextlib.aclosing(queue.look(selection)) as found:
            async for letter in found:
                file.write(row(letter, reveal=reveal))
                count += 1
    return count
