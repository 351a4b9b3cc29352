"""Common options, messages and questions of commands, and the signals that end them."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Annotated

import typer

from worker.contract.platforms import PLATFORMS
from worker.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Resource = Annotated[
    list[str] | None, typer.Option(help=f"{' or '.join(each.id_field for each in PLATFORMS.values())}.")
]


def known(option: str, values: Iterable[str] | None, words: Collection[str]) -> frozenset[str]:
    """The values of an option. Raises UsageError if one is not among `words`."""
    if not set(words).issuperset(chosen := frozenset(values or ())):
        which = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise UsageError(f"{option} must be {which}")
    return chosen


class Say:
    """Prints messages on standard error, each once."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._said = {""}

    def __call__(self, text: str) -> None:
        if text not in self._said and not self._is_quiet:
            self._said.add(text)
            typer.echo(f"ott-worker: {text}", err=True)


def agreed(question: str) -> bool:
    """Ask on standard error, and read the answer from standard input."""
    typer.echo(f"{question} [y/N]: ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer:
        raise typer.Abort
    return answer.strip().lower() in ("y", "yes")


def letters(count: int) -> str:
    """`1 dead letter`, `2 dead letters`."""
    return f"{count} dead letter{'' if count == 1 else 's'}"


def on_end(stop: Callable[[], object]) -> None:
    """Call `stop` on SIGTERM, SIGINT, and SIGHUP unless that is ignored, as with nohup. Does nothing outside
    the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop)
