"""What a job shows: a bar on a terminal, a line every few seconds elsewhere, a summary at the end; and what
`--check` reports (contract §12)."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from worker.files.check import Findings, ProblemGroup
from worker.files.damage import Kind, Problem
from worker.files.progress import ErrorGroup, Notices, Tally
from worker.files.source import CHUNK

REFRESH: Final = 0.2  # seconds
LINE_INTERVAL: Final = 5.0  # seconds
RATE_OVER: Final = 10.0  # seconds
SHOWN_ERRORS: Final = 3
SHOWN_PLACES: Final = 20  # of one kind, on a terminal
PIPE_WIDTH: Final = 200  # columns, where there is no terminal
# In the order in which a summary names them.
STYLES: Final = {
    "registered": "green",
    "rejected": "red",
    "failed": "red",
    "invalid": "red",
    "superseded": "",
}


class SubmitProgress:
    """Shows one job. `size` is that of all inputs in bytes, None where it is unknown. Rows are done when they
    are answered, or without `wait` when they are published."""

    def __init__(self, tally: Tally, notices: Notices, size: int | None, *, wait: bool = True) -> None:
        self._tally = tally
        self._notices = notices
        self._size = size
        self._wait = wait
        self._started = time.monotonic()
        self._progress = Progress(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            expand=True,
            auto_refresh=False,
            speed_estimate_period=RATE_OVER,
        )
        self._task = self._progress.add_task("", total=None)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @asynccontextmanager
    async def shown(self, console: Console) -> AsyncIterator[None]:
        """Show it on this console while the context lasts."""
        show = self._bar(console) if console.is_terminal else self._lines(console)
        task = asyncio.create_task(show, name="progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _bar(self, console: Console) -> None:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self.render(), refresh=True)
                await asyncio.sleep(REFRESH)

    async def _lines(self, console: Console) -> None:
        notice, due = "", LINE_INTERVAL
        while True:
            await asyncio.sleep(REFRESH)
            line = self.line()
            if self._notices.current not in ("", notice):
                print_line(console, self._notices.current)
            notice = self._notices.current
            if self.elapsed >= due:
                due += LINE_INTERVAL
                print_line(console, line)

    def render(self) -> RenderableType:
        """The bar, the counts, the most frequent errors, and what stands in the way."""
        self._progress.update(self._task, description="  ".join(self._take_in()))
        counts = self._counts()
        table = Table.grid(padding=(0, 2))
        for _ in counts:
            table.add_column(justify="right", no_wrap=True, min_width=8)
        table.add_row(*(Text(name, style="dim") for name in counts))
        styles = {name: STYLES.get(name, "") if number else "dim" for name, number in counts.items()}
        table.add_row(*(Text(f"{number:,}", style=styles[name]) for name, number in counts.items()))
        parts: list[RenderableType] = [self._progress, table]
        errors = self._frequent_errors()
        parts += [Text(error, style="red", no_wrap=True, overflow="ellipsis") for error in errors]
        if self._notices.current:
            parts.append(Text(self._notices.current, style="yellow"))
        return Group(*parts)

    def line(self) -> str:
        """The same in one line."""
        counts = [f"{number:,} {name}" for name, number in self._counts().items()]
        return "; ".join([", ".join(counts + self._take_in()), *self._frequent_errors()])

    def _take_in(self) -> list[str]:
        """Take in how many rows are done; how fast it goes, and the time left."""
        tally, task = self._tally, self._progress.tasks[0]
        done = tally.answered if self._wait else tally.published + tally.answered
        task.total = self._total()
        self._progress.update(self._task, completed=done + tally.skipped)
        speed = [f"{task.speed or 0:,.0f} rows/s"]
        left = task.time_remaining
        return speed if left is None else [*speed, f"{duration(left)} left"]

    def _total(self) -> float | None:
        """All rows; while the input is being read, as many as its size lets expect."""
        if self._tally.total is not None or self._size is None or self._tally.read_bytes < 4 * CHUNK:
            return self._tally.total
        return self._tally.read * self._size / self._tally.read_bytes

    def _counts(self) -> dict[str, int]:
        """Rows by what became of them, in the order in which that happens."""
        tally = self._tally
        counts = {"read": tally.read, "published": tally.published, "skipped": tally.skipped}
        counts |= {name: tally.statuses[name] for name in STYLES}
        always = {"read", "published", "rejected"} | ({"registered", "failed"} if self._wait else set())
        return {name: number for name, number in counts.items() if number or name in always}

    def _frequent_errors(self) -> list[str]:
        return [f"{group.count:,} times: {group.error}" for group in self._tally.errors()[:SHOWN_ERRORS]]


def duration(seconds: float) -> str:
    """`0:01:12`."""
    return str(timedelta(seconds=round(seconds)))


def console_for_results() -> Console:
    """Standard output, wide enough for whole lines where it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_summary(console: Console, tally: Tally, out: int, seconds: float, *, wait: bool) -> None:
    """Counts and rate, then the errors with the first rows of each. `out` rows have not come back."""
    done = tally.answered if wait else tally.published
    rate = f", {done / seconds:,.0f} rows/s" if seconds >= 1 else ""
    console.print(
        f"{rows(tally.read)} read in {duration(seconds)}{rate}: {_by_status(tally, out, wait=wait)}."
    )
    if tally.groups:
        console.print(_error_table(tally.errors()))
    if tally.overtaken.count:
        print_line(
            console,
            f"{rows(tally.overtaken.count)} superseded by a newer registration of the page or channel "
            f"(row {tally.overtaken.places}). "
            "Is the file right? Then --as-of now (with --resume) sends them all the same.",
        )


def _error_table(groups: list[ErrorGroup]) -> Table:
    """The errors, the most frequent first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Status", no_wrap=True)
    table.add_column("Rows", justify="right", no_wrap=True)
    table.add_column("Error", overflow="fold")
    table.add_column("First rows", overflow="fold")
    for group in groups:
        table.add_row(group.status, f"{group.count:,}", Text(group.error), group.places)
    return table


def _by_status(tally: Tally, out: int, *, wait: bool) -> str:
    parts = [] if wait else [f"{tally.published:,} published"]
    parts += [f"{tally.statuses[status]:,} {status}" for status in STYLES if tally.statuses[status]]
    if tally.skipped:
        parts.append(f"{tally.skipped:,} settled before")
    if out:
        parts.append(f"{out:,} {'published and not answered' if wait else 'not confirmed by the broker'}")
    return ", ".join(parts) or "nothing to do"


def show_findings(console: Console, findings: Findings) -> None:
    """Problems by kind, the most frequent first: what is wrong, what is allowed, what to do, and where."""
    for kind, group in sorted(findings.groups.items(), key=lambda item: -item[1].rows):
        print_line(console, f"{_title(kind, group)}: {rows(group.rows)}")
        print_line(console, f"  Allowed: {kind.allowed}.")
        print_line(console, f"  To do: {kind.advice}")
        shown = group.places[:SHOWN_PLACES] if console.is_terminal else group.places
        for place, problem in shown:
            print_line(console, f"    {place}{_about(problem)}")
        if group.rows > len(shown):
            print_line(
                console, f"    … and {group.rows - len(shown):,} more; --results FILE names all of them"
            )
        console.print()


def _title(kind: Kind, group: ProblemGroup) -> str:
    if group.places[0][1].message:
        return kind.what.rstrip(".")
    columns = dict.fromkeys(problem.column for _, problem in group.places if problem.column)
    return f"{' or '.join(columns) or 'The row'} {kind.what}"


def _about(problem: Problem) -> str:
    column = f", column {problem.column}" if problem.column else ""
    value = f": {problem.value}" if problem.value else ""
    return f"{column}{value}{f' ({problem.remark})' if problem.remark else ''}"


def rows(number: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} row{'' if number == 1 else 's'}"


def print_line(console: Console, text: str) -> None:
    """A line that is not wrapped."""
    console.print(text, markup=False, soft_wrap=True)
