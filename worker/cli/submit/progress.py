"""How a job stands, for the one who waits: a bar on a terminal, a line every few seconds elsewhere."""

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

from worker.files.progress import Notices, ProgressMeter, ProgressSnapshot, Tally

REFRESH: Final = 0.2  # seconds
LINE_INTERVAL: Final = 5.0  # seconds
SHOWN_ERRORS: Final = 3


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
