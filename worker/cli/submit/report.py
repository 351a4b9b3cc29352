"""The output of a job: a progress bar on a terminal, else a line every few seconds; a summary at the end; and
the report of `--check` (contract §12)."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from worker.files.damage import Kind
from worker.files.job import Notices, Tally
from worker.files.rows import Group

REFRESH: Final = 0.2  # seconds
LINE_INTERVAL: Final = 5.0  # seconds
RATE_OVER: Final = 10.0  # seconds
SHOWN_ERRORS: Final = 3
SHOWN_PLACES: Final = 20  # of one kind, on a terminal
PIPE_WIDTH: Final = 200  # columns without a terminal
STATUSES: Final = ("registered", "rejected", "failed", "invalid", "superseded")


class _Bar(Progress):
    """The progress bar with the counts, the most frequent errors, and what the job waits for. Rows are done
    when they are answered, or without `wait` when they are published."""

    def __init__(self, console: Console, tally: Tally, notices: Notices, *, wait: bool) -> None:
        self._tally, self._notices, self._wait = tally, notices, wait
        super().__init__(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            console=console,
            expand=True,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=RATE_OVER,
        )
        self._row_task = self.add_task("", total=None)

    def update_counts(self) -> None:
        """Update the number of rows done, the speed and the time left."""
        tally, (task,) = self._tally, self.tasks
        done = tally.skipped + tally.answered + (0 if self._wait else tally.published)
        left = "" if task.time_remaining is None else f", {duration(task.time_remaining)} left"
        speed = f"{task.speed or 0:,.0f} rows/s{left}"
        self.update(self._row_task, completed=done, total=tally.total, description=speed)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for line in self._lines():
            yield Text(line, no_wrap=True, overflow="ellipsis")

    def line(self) -> str:
        """The progress as one line."""
        counts, *others = self._lines()
        return "; ".join([f"{counts}, {self.tasks[0].description}", *others])

    def _lines(self) -> list[str]:
        tally = self._tally
        counts = {"read": tally.read, "published": tally.published, "skipped": tally.skipped}
        counts |= {status: tally.statuses[status] for status in STATUSES}
        always = ("read", "published", "rejected", *(("registered", "failed") if self._wait else ()))
        shown_counts = [f"{number:,} {name}" for name, number in counts.items() if number or name in always]
        errors = [f"{group.count:,} times: {error}" for _, error, group in tally.errors()[:SHOWN_ERRORS]]
        return [", ".join(shown_counts), *errors, *filter(None, [self._notices.current])]


@asynccontextmanager
async def shown(console: Console, tally: Tally, notices: Notices, *, wait: bool) -> AsyncIterator[None]:
    """Show the progress of a job within the context."""
    task = asyncio.create_task(_show(_Bar(console, tally, notices, wait=wait)), name="progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _show(bar: _Bar) -> None:
    due = time.monotonic() + LINE_INTERVAL
    with bar:
        while True:
            bar.update_counts()
            bar.refresh()
            await asyncio.sleep(REFRESH)
            if bar.disable and time.monotonic() >= due:
                due += LINE_INTERVAL
                print_line(bar.console, bar.line())


def duration(seconds: float) -> str:
    """`0:01:12`."""
    return str(timedelta(seconds=round(seconds)))


def console_for_results() -> Console:
    """Standard output; if it is not a terminal, wide enough for whole lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_summary(console: Console, tally: Tally, out: int, seconds: float, *, wait: bool) -> None:
    """Counts and rate, then the errors with the first rows of each. `out` rows are outstanding."""
    done = tally.answered if wait else tally.published
    rate = f", {done / seconds:,.0f} rows/s" if seconds >= 1 else ""
    counts = {} if wait else {"published": tally.published}
    counts |= {status: number for status in STATUSES if (number := tally.statuses[status])}
    counts |= {"settled before": tally.skipped} if tally.skipped else {}
    counts |= {"published and not answered" if wait else "not confirmed by the broker": out} if out else {}
    summary = ", ".join(f"{number:,} {name}" for name, number in counts.items()) or "nothing to do"
    console.print(f"{rows(tally.read)} read in {duration(seconds)}{rate}: {summary}.")
    if tally.groups:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("Status", no_wrap=True)
        table.add_column("Rows", justify="right", no_wrap=True)
        table.add_column("Error", overflow="fold")
        table.add_column("First rows", overflow="fold")
        for status, error, group in tally.errors():
            table.add_row(status, f"{group.count:,}", Text(error), str(group))
        console.print(table)
    if tally.overtaken.count:
        print_line(
            console,
            f"{rows(tally.overtaken.count)} superseded by a newer registration of the page or channel "
            f"(row {tally.overtaken}). "
            "If the file is right, --as-of now (with --resume) sends them anyway.",
        )


def show_findings(console: Console, groups: Mapping[tuple[Kind, str], Group]) -> None:
    """Problems by kind and column, most frequent first: what is wrong, what is allowed, what to do, and
    where."""
    for (kind, column), group in sorted(groups.items(), key=lambda item: -item[1].count):
        title = kind.what.rstrip(".") if kind.is_sentence else f"{column or 'The row'} {kind.what}"
        print_line(console, f"{title}: {rows(group.count)}")
        print_line(console, f"  Allowed: {kind.allowed}.")
        print_line(console, f"  To do: {kind.advice}")
        places = group.places[:SHOWN_PLACES] if console.is_terminal else group.places
        for place in places:
            print_line(console, f"    {place}")
        if group.count > len(places):
            more = group.count - len(places)
            print_line(console, f"    … and {more:,} more; --results FILE names all of them")
        console.print()


def rows(number: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def print_line(console: Console, text: str) -> None:
    """Print a line without wrapping it."""
    console.print(text, markup=False, soft_wrap=True)
