"""`ott-worker dead-letters`, one file a subcommand."""

import typer

from worker.cli.dead_letters.discard import discard
from worker.cli.dead_letters.export import export
from worker.cli.dead_letters.listing import list_letters
from worker.cli.dead_letters.replay import replay
from worker.cli.dead_letters.show import show

app = typer.Typer(
    no_args_is_help=True,
    help="Look at requests that were not registered; replay, export or discard them.\n\n"
    "Example: ott-worker dead-letters list --since 2h",
)
app.command("list")(list_letters)
app.command()(show)
app.command()(replay)
app.command()(discard)
app.command()(export)
