"""The command line: all commands. An error becomes one line and an exit code."""

import errno
import gc
import io
import logging
import os
import resource
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, ClassVar, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from worker.cli import output
from worker.errors import Interrupted, UsageError, WorkerError


class _Group(TyperGroup):
    """Commands that are imported when they are called: each needs only a part of the libraries, and importing
    all takes most of a second. `targets` maps a command's name to its `module:function`, or to a group. The
    group's help imports all of them."""

    targets: ClassVar[Mapping[str, str | typer.Typer]]

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = dict.fromkeys(self.targets)  # type: ignore[assignment] # their names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        target = self.targets.get(cmd_name)
        if isinstance(target, str):
            module, _, function = target.partition(":")
            target = typer.Typer(add_completion=False)
            gc.disable()  # collections during the import free nothing, and take a tenth of the start
            target.command(cmd_name)(getattr(import_module(f"worker.cli.{module}"), function))
            gc.enable()
        return target and get_command(target)

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command and exit with a code of contract §8."""
        text = ""
        try:
            code = super().main(*args, **options | {"standalone_mode": False}) or 0
            output.flush()
        except WorkerError as error:
            text, code = str(error), error.exit_code
        except typer.TyperException as error:
            message = error.format_message()  # empty if the help was printed
            text, code = message and f"{message} (see --help)", UsageError.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = Interrupted.exit_code
        except typer.Exit as end:
            code = end.exit_code
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text, code = f"cannot write to standard output: {error.strerror}", WorkerError.exit_code
            output.abandon()
        if text:
            print(f"ott-worker: {text}", file=sys.stderr)  # noqa: T201
        sys.exit(code)


def _group(
    name: str, text: str, targets: Mapping[str, str | typer.Typer], callback: Any = lambda: None
) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=type("_Commands", (_Group,), {"targets": targets}),
        help=text,
        callback=callback,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )


def _print_version(asked: bool) -> None:
    if asked:
        from worker.release import version  # noqa: PLC0415 # slow to import

        output.line(f"ott-worker {version()}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app = _group(
    "ott-worker",
    "Registers Messenger pages and LINE channels with Marketing Cloud, from RabbitMQ.\n\n"
    "Example: ott-worker demo",
    {
        "run": "run:run",
        "check": "check:check",
        "status": "status:status",
        "pause": "control:pause",
        "resume": "control:resume",
        "demo": "demo:demo",
        "submit": "submit.command:submit",
        "sandbox": "serve:sandbox",
        "schema": "schema:schema",
        "dead-letters": _group(
            "dead-letters",
            "List, show, replay, export or discard requests that were not registered.\n\n"
            "Example: ott-worker dead-letters list --since 2h",
            {
                "list": "dead_letters.look:list_letters",
                "show": "dead_letters.look:show",
                "replay": "dead_letters.change:replay",
                "discard": "dead_letters.change:discard",
                "export": "dead_letters.change:export",
            },
        ),
        "journal": "journal:journal",
        "partitions": _group(
            "partitions",
            "Manage the partitions, with which several workers are active at once.\n\n"
            "Example: ott-worker partitions prune",
            {"prune": "control:prune"},
        ),
        "console": "serve:console",
    },
    _root,
)


def main() -> None:
    """Run the command of this process's arguments."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold secrets
    _prepare_streams()
    logging.disable()  # the libraries' logs: some contain whole messages, secrets included
    app()


def _prepare_streams() -> None:
    """Escape characters that the encoding lacks. Open closed standard streams on the null device: else the
    next connection would get their descriptor, and output would be written to it."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w+", encoding="utf-8"))  # noqa: SIM115 # for as long as it runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
