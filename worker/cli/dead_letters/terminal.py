"""What the commands say and ask on a terminal."""

import contextlib
import getpass
import sys
from collections.abc import Iterable, Iterator

import typer
from rich import progress
from rich.console import Console

from worker.cli import output
from worker.cli.signals import on_end
from worker.contract.platforms import SECRET_FIELDS
from worker.dead_letters.plan import Plan, Planned
from worker.dead_letters.run import Run
from worker.errors import BrokerUnreachable, UsageError

TOLD = 20  # letters; more are told in groups


class Say:
    """Lines of ours on standard error, each once."""

    def __init__(self) -> None:
        self._said = {""}

    def __call__(self, text: str) -> None:
        if text not in self._said:
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


def told_superseded(plan: Plan, say: Say) -> None:
    """Say which replays would be superseded, and by what."""
    superseded = [letter for letter in plan.letters if letter.outcome == "superseded"]
    for letter in superseded[:TOLD]:
        say(f"{named(letter)} would be superseded by {letter.why}")
    if len(superseded) > TOLD:
        say(f"and {len(superseded) - TOLD} more would be superseded: see --dry-run")


def named(letter: Planned) -> str:
    """The letter, its resource, and its request."""
    return output.printable(f"{letter.key}  {letter.facts.resource_id or '-'}  request {letter.facts.id}")


async def performed(run: Run, title: str, *, rate: float | None, follow: bool) -> BrokerUnreachable | None:
    """Perform a run with a progress bar on standard error, where that is a terminal. Signals stop it.
    What cut it short."""
    on_end(run.stop)
    try:
        with _progress_bar(title, run):
            await run.perform(rate=rate, follow=follow)
    except BrokerUnreachable as error:
        return error
    return None


@contextlib.contextmanager
def _progress_bar(title: str, run: Run) -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal or run.planned is None:
        yield
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=len(run.planned.going))
        run.progressed = lambda: bar.update(task, completed=run.done)
        yield


def told_absent(run: Run, say: Say) -> None:
    """Say which letters were not there as they were planned."""
    if run.gone:
        say(f"{letters(len(run.gone))} had gone meanwhile: {some(run.gone)}")
    if run.changed:
        say(f"{letters(len(run.changed))} had changed meanwhile, and stay: {some(run.changed)}")
