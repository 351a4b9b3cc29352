"""The commands, put together; what goes wrong becomes one line and an exit code."""

import errno
import io
import os
import sys
from typing import Annotated, ClassVar

import typer

from worker.cli import output
from worker.cli.lazy_group import LazyGroup
from worker.errors import Interrupted, UsageError, WorkerError
from worker.release import version
from worker.telemetry.library_logs import silence_libraries


class _Commands(LazyGroup):
    places: ClassVar = {
        "run": "worker.cli.run:run",
        "check": "worker.cli.check:check",
        "status": "worker.cli.status:status",
        "pause": "worker.cli.pause:pause",
        "resume": "worker.cli.pause:resume",
        "demo": "worker.cli.demo:demo",
        "submit": "worker.cli.submit.command:submit",
        "sandbox": "worker.cli.sandbox:sandbox",
        "schema": "worker.cli.schema:schema",
        "dead-letters": "worker.cli.dead_letters:app",
        "journal": "worker.cli.journal:journal",
        "partitions": "worker.cli.partitions:app",
        "console": "worker.cli.console:console",
    }


app = typer.Typer(
    name="ott-worker",
    cls=_Commands,
    help="Registers Messenger pages and LINE channels with Marketing Cloud, from RabbitMQ.\n\n"
    "Example: ott-worker demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        output.line(f"ott-worker {version()}")
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
        _prepare_streams()
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


def _prepare_streams() -> None:
    """A character that the encoding lacks is escaped. A standard stream that is closed is opened as nothing:
    else the next connection would take its descriptor, and be written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
