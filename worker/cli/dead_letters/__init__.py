"""`ott-worker dead-letters`, one file a subcommand."""

from typing import ClassVar

import typer

from worker.cli.lazy_group import LazyGroup


class _Commands(LazyGroup):
    places: ClassVar = {
        "list": "worker.cli.dead_letters.listing:list_letters",
        "show": "worker.cli.dead_letters.show:show",
        "replay": "worker.cli.dead_letters.replay:replay",
        "discard": "worker.cli.dead_letters.discard:discard",
        "export": "worker.cli.dead_letters.export:export",
    }


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    help="Look at requests that were not registered; replay, export or discard them.\n\n"
    "Example: ott-worker dead-letters list --since 2h",
    add_completion=False,
)


@app.callback()
def _dead_letters() -> None:
    pass
