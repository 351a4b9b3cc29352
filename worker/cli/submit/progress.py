"""What a job shows: a bar on a terminal, a line every few seconds elsewhere, and a summary at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.files.progress import FIRST_ROWS, ErrorGroup, Notices, ProgressMeter, ProgressSnapshot, Tally

REFRESH: Final = 0.2  # seconds
LINE_INTERVAL: Final = 5.0  # seconds
SHOWN_ERRORS: Final = 3
ORDER = ("registered", "rejected", "failed", "invalid", "superseded")
PIPE_WIDTH = 200  # columns, where there is no terminal


class SubmitProgress:
    """Shows one job."""

    def __init__(self, tally: Tally, notices: Notices, meter: ProgressMeter) -> None:
        self._tally = tally
        self._notices = notices
        self._meter = meter

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
                console.print(self._notices.current, soft_wrap=True, markup=False)
            notice = self._notices.current
            if self._meter.elapsed >= due:
                due += LINE_INTERVAL
                console.print(line, soft_wrap=True, markup=False)

    def render(self) -> RenderableType:
        """The bar, the counts, the most frequent errors, and what stands in the way."""
        snapshot = self._meter.snapshot()
        total = snapshot.total
        bar = ProgressBar(total=total or 1, completed=snapshot.done if total else 0, pulse=total is None)
        beside = [f"{min(1, snapshot.done / total):.0%}"] if total else []
        beside.extend(_speed(snapshot))
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(ratio=1)
        for _ in beside:
            top.add_column(justify="right", no_wrap=True)
        top.add_row(bar, *beside)
        counts = Table.grid(padding=(0, 2))
        for _ in snapshot.counts:
            counts.add_column(justify="right", no_wrap=True, min_width=8)
        counts.add_row(*(Text(name, style="dim") for name in snapshot.counts))
        numbers = snapshot.counts.items()
        counts.add_row(*(Text(f"{number:,}", style=_style(name, number)) for name, number in numbers))
        parts: list[RenderableType] = [top, counts]
        parts.extend(
            Text(f"{group.count:,} times: {group.error}", style="red", no_wrap=True, overflow="ellipsis")
            for group in self._tally.errors()[:SHOWN_ERRORS]
        )
        if self._notices.current:
            parts.append(Text(self._notices.current, style="yellow"))
        return Group(*parts)

    def line(self) -> str:
        """The same in one line."""
        snapshot = self._meter.snapshot()
        parts = [f"{number:,} {name}" for name, number in snapshot.counts.items()]
        line = ", ".join([*parts, *_speed(snapshot)])
        errors = self._tally.errors()[:SHOWN_ERRORS]
        return "; ".join([line, *(f"{group.count:,} times: {group.error}" for group in errors)])


def duration(seconds: float) -> str:
    """`0:01:12`."""
    return str(timedelta(seconds=round(seconds)))


def _speed(snapshot: ProgressSnapshot) -> list[str]:
    speed = [f"{snapshot.rows_per_second:,.0f} rows/s"]
    return speed if snapshot.seconds_left is None else [*speed, f"{duration(snapshot.seconds_left)} left"]


def _style(name: str, number: int) -> str:
    if not number:
        return "dim"
    return {"registered": "green", "rejected": "red", "failed": "red", "invalid": "red"}.get(name, "")


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
    show_errors(console, tally.errors())
    if overtaken := tally.overtaken.count:
        first = ", ".join(tally.overtaken.first) + (" …" if overtaken > FIRST_ROWS else "")
        console.print(
            f"{rows(overtaken)} superseded by a newer registration of the page or channel (row {first}). "
            "Is the file right? Then --as-of now (with --resume) sends them all the same.",
            soft_wrap=True,
            markup=False,
        )


def show_errors(console: Console, groups: list[ErrorGroup]) -> None:
    """A table of the errors, the most frequent first; nothing without errors."""
    if not groups:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Status", no_wrap=True)
    table.add_column("Rows", justify="right", no_wrap=True)
    table.add_column("Error", overflow="fold")
    table.add_column("First rows", overflow="fold")
    for group in groups:
        more = " …" if group.count > FIRST_ROWS else ""
        first = ", ".join(group.first) + more
        table.add_row(group.status, f"{group.count:,}", Text(group.error), first)
    console.print(table)


def _by_status(tally: Tally, out: int, *, wait: bool) -> str:
    parts = [] if wait else [f"{tally.published:,} published"]
    parts += [f"{tally.statuses[status]:,} {status}" for status in ORDER if tally.statuses[status]]
    if tally.skipped:
        parts.append(f"{tally.skipped:,} settled before")
    if out:
        parts.append(f"{out:,} {'published and not answered' if wait else 'not confirmed by the broker'}")
    return ", ".join(parts) or "nothing to do"


def rows(number: int) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} row{'' if number == 1 else 's'}"
