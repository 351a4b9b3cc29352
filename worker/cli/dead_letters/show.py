"""`ott-worker dead-letters show`."""

import asyncio
import contextlib
from typing import Annotated, Any

import typer

from worker.cli import output
from worker.cli.dead_letters.options import (
    BareIds,
    Ids,
    Json,
    Platforms,
    Reasons,
    Resources,
    Since,
    Until,
    select,
)
from worker.cli.dead_letters.terminal import say
from worker.dead_letters.box import open_box
from worker.dead_letters.selection import Selection
from worker.dead_letters.view import as_text, view
from worker.errors import UsageError
from worker.settings import Settings, load_settings


def show(
    bare_ids: BareIds = None,
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print all values, secrets too.")] = False,
    as_json: Json = False,
) -> int:
    """Show dead letters whole: properties, headers, body. Changes nothing.

    Values of fields that may hold a secret show their type and length only.

    Example: ott-worker dead-letters show 6f1c0a52d0b14a5e
    """
    selection = select(reason, platform, resource, [*(bare_ids or ()), *(id_ or ())], since, until)
    if selection.is_everything:
        raise UsageError("show wants the id of a dead letter, or a filter: see ott-worker dead-letters list")
    documents = asyncio.run(_show(load_settings(), selection, reveal=reveal))
    if not documents:
        typer.echo("ott-worker: no dead letter matches", err=True)
        return 1
    for number, document in enumerate(documents):
        if as_json:
            output.json_line(document)
            continue
        if number:
            output.write("")
        for line in as_text(document):
            output.line(line)
    output.flush()
    return 0


async def _show(settings: Settings, selection: Selection, *, reveal: bool) -> list[dict[str, Any]]:
    async with open_box(settings, say) as box, contextlib.aclosing(box.look(selection)) as letters:
        return [view(letter, reveal=reveal) async for letter in letters]
