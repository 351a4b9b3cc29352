"""What commands say and ask on a terminal, and the signals that end them."""

import asyncio
import contextlib
import getpass
import signal
import sys
import threading
from collections.abc import Callable, Iterable

import typer

from worker.contract.platforms import SECRET_FIELDS
from worker.errors import UsageError

TOLD = 20  # letters; more are told in groups


class Say:
    """Lines of ours on standard error, each once."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._said = {""}

    def __call__(self, text: str) -> None:
        if text not in self._said and not self._is_quiet:
            self._said.add(text)
            typer.echo(f"ott-worker: {text}", err=True)


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


def some(names: Iterable[str]) -> str:
    """A few of them, and how many there are besides."""
    names = sorted(names)
    return ", ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")


def on_end(stop: Callable[[], object]) -> None:
    """Call `stop` on SIGTERM, SIGINT, and SIGHUP unless that is ignored, as by nohup. Off the main thread,
    which alone hears signals, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
