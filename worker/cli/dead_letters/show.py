"""`ott-worker dead-letters show`."""

import asyncio
from typing import Annotated

import typer

from worker.cli import output
from worker.cli.dead_letters.options import Json, filtered
from worker.cli.dead_letters.terminal import Say
from worker.dead_letters.groups import advice
from worker.dead_letters.letter import Letter
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.selection import Selection
from worker.dead_letters.view import as_text, view
from worker.errors import UsageError
from worker.settings import Settings, load_settings

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
    say = Say()
    found = asyncio.run(_look(load_settings(), selection, say))
    if not found:
        say("no dead letter matches")
        return 1
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
    return 0


async def _look(settings: Settings, selection: Selection, say: Say) -> list[Letter]:
    async with open_dead_letters(settings, say) as queue:
        return selection.named(await queue.read(selection, lambda letter: letter))


def _next(letter: Letter) -> str:
    command = next((command for command, reasons in NEXT.items() if letter.reason in reasons), "replay")
    name, _, more = command.partition(" ")
    return f"{name} {letter.key} {more}".rstrip()
