"""What the commands say and ask on a terminal."""

import contextlib
import getpass
import sys
from typing import Literal

import typer

from worker.broker.control_stream import publish_order
from worker.contract.control import Order
from worker.contract.platforms import SECRET_FIELDS
from worker.errors import UsageError, WorkerError
from worker.settings import Settings


def read_value(field: str) -> str:
    """A value from standard input; a terminal is told what is wanted, and does not show a secret."""
    if not sys.stdin.isatty():
        return sys.stdin.read()
    prompt = f"{field}: "
    if field in SECRET_FIELDS:
        return getpass.getpass(prompt, sys.stderr)
    typer.echo(prompt, nl=False, err=True)
    return sys.stdin.readline()


def agreed(question: str) -> bool:
    """Ask on the terminal, which need not be what standard input and output are."""
    typer.echo(f"{question} [y/N]: ", nl=False, err=True)
    try:
        with contextlib.nullcontext(sys.stdin) if sys.stdin.isatty() else open("/dev/tty") as terminal:
            answer = terminal.readline()
    except OSError:
        typer.echo(err=True)
        raise UsageError("there is no terminal to ask on: give --yes") from None
    if not answer:
        raise typer.Abort
    return answer.strip().lower() in ("y", "yes")


def letters(count: int) -> str:
    """`1 dead letter`, `2 dead letters`."""
    return f"{count} dead letter{'' if count == 1 else 's'}"


async def record(order: Literal["replayed", "discarded"], count: int, settings: Settings) -> None:
    """Note in the control stream what this user changed (contract §11). A user who may not write there, or a
    broker without that stream, makes the change no less done."""
    with contextlib.suppress(WorkerError):
        await publish_order(settings, Order.now(order, "", count=count))


def say(text: str) -> None:
    """A line of ours on standard error."""
    typer.echo(f"ott-worker: {text}", err=True)
