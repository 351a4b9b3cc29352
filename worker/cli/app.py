"""The commands, put together; what goes wrong becomes one line and an exit code."""

import errno
import sys
from importlib import metadata
from typing import Annotated

import typer

from worker.cli import dead_letters, output, partitions
from worker.cli.check import check
from worker.cli.console import console
from worker.cli.demo import demo
from worker.cli.journal import journal
from worker.cli.pause import pause, resume
from worker.cli.run import run
from worker.cli.sandbox import sandbox
from worker.cli.schema import schema
from worker.cli.status import status
from worker.cli.submit.command import submit
from worker.errors import Interrupted, UsageError, WorkerError
from worker.telemetry.log import silence_libraries
from worker.telemetry.state import PACKAGE

app = typer.Typer(
    name="ott-worker",
    help="Registers Messenger pages and LINE channels with Marketing Cloud, from RabbitMQ.\n\n"
    "Example: ott-worker demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(run)
app.command()(check)
app.command()(status)
app.command()(pause)
app.command()(resume)
app.command()(demo)
app.command()(submit)
app.command()(sandbox)
app.command()(schema)
app.add_typer(dead_letters.app, name="dead-letters")
app.command()(journal)
app.add_typer(partitions.app, name="partitions")
app.command()(console)


def _print_version(asked: bool) -> None:
    if asked:
        output.line(f"ott-worker {metadata.version(PACKAGE)}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command. Exit codes as in contract §8."""
    try:
        silence_libraries()
        code = _run()
        output.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = Interrupted.exit_code
    except typer.Exit as end:
        code = end.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"ott-worker: standard output takes no more: {error.strerror}", file=sys.stderr)  # noqa: T201
        output.abandon()
        code = WorkerError.exit_code
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except WorkerError as error:
        print(f"ott-worker: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except Exception as error:
        # Usage errors have this method in common; Typer does not export their base class.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        if message := format_message():  # else the help itself was the message
            print(f"ott-worker: {message} (see --help)", file=sys.stderr)  # noqa: T201
        return UsageError.exit_code
    return code if isinstance(code, int) else 0
