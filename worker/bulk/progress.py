"""How a job stands, for the one who waits: a bar on a terminal, now and then a line elsewhere."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.bulk.notices import Notices
from worker.bulk.source import CHUNK
from worker.bulk.tally import Tally

REFRESH: Final = 0.2  # seconds
LINE_EVERY: Final = 5.0  # seconds
RATE_OVER: Final = 10.0  # seconds


class Job(Protocol):
    """What is watched."""

    tally: Tally
    notices: Notices


class Progress:
    """Follows one job. `size` is that of all inputs in bytes, None where it is not known; rows are done
    when they are answered, or without `wait` when they are published."""

    def __init__(self, job: Job, size: int | None, *, wait: bool = True) -> None:
        self._job = job
        self._size = size
        self._wait = wait
        self._started = time.monotonic()
        self._marks: deque[tuple[float, int]] = deque([(self._started, 0)])

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
                self._mark()
                live.update(self.render(), refresh=True)
                await asyncio.sleep(REFRESH)

    async def _lines(self, console: Console) -> None:
        notice, due = "", self._started + LINE_EVERY
        while True:
            await asyncio.sleep(REFRESH)
            self._mark()
            if self._job.notices.current not in ("", notice):
                console.print(self._job.notices.current, soft_wrap=True)
            notice = self._job.notices.current
            if time.monotonic() >= due:
                due += LINE_EVERY
                console.print(self.line(), soft_wrap=True)

    def render(self) -> RenderableType:
        """The bar, the counts, and what stands in the way."""
        total = self._total()
        bar = ProgressBar(total=total or 1, completed=self._done() if total else 0, pulse=total is None)
        beside = [f"{min(1, self._done() / total):.0%}"] if total else []
        beside.append(f"{self._rate():,.0f} rows/s")
        if left := self._left():
            beside.append(f"{left} left")
        top = Table.grid(padding=(0, 2), expand=True)
        top.add_column(ratio=1)
        for _ in beside:
            top.add_column(justify="right", no_wrap=True)
        top.add_row(bar, *beside)
        counts = Table.grid(padding=(0, 2))
        names = self._counts()
        for _ in names:
            counts.add_column(justify="right", no_wrap=True, min_width=8)
        counts.add_row(*(Text(name, style="dim") for name in names))
        counts.add_row(*(Text(f"{number:,}", style=_style(name, number)) for name, number in names.items()))
        parts: list[RenderableType] = [top, counts]
        if self._job.notices.current:
            parts.append(Text(self._job.notices.current, style="yellow"))
        return Group(*parts)

    def line(self) -> str:
        """The same in one line."""
        parts = [f"{number:,} {name}" for name, number in self._counts().items()]
        parts.append(f"{self._rate():,.0f} rows/s")
        left = self._left()
        return ", ".join([*parts, f"{left} left"] if left else parts)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def _counts(self) -> dict[str, int]:
        tally = self._job.tally
        counts = {"read": tally.read, "published": tally.published}
        if tally.skipped:
            counts["skipped"] = tally.skipped
        if self._wait:
            counts |= {"registered": tally.registered}
        counts["rejected"] = tally.statuses["rejected"]
        if self._wait:
            counts["failed"] = tally.statuses["failed"]
        if tally.statuses["superseded"]:
            counts["superseded"] = tally.statuses["superseded"]
        return counts

    def _done(self) -> int:
        return self._moved() + self._job.tally.skipped

    def _moved(self) -> int:
        """Rows that this run has dealt with."""
        tally = self._job.tally
        return tally.answered if self._wait else tally.published + tally.answered

    def _total(self) -> float | None:
        """All rows; while the input is being read, as many as its size lets expect."""
        tally = self._job.tally
        if tally.total is not None:
            return tally.total
        if self._size is None or tally.read_bytes < 4 * CHUNK:
            return None
        return tally.read * self._size / tally.read_bytes

    def _mark(self) -> None:
        now = time.monotonic()
        self._marks.append((now, self._moved()))
        while now - self._marks[0][0] > RATE_OVER:
            self._marks.popleft()

    def _rate(self) -> float:
        (then, before), (now, after) = self._marks[0], self._marks[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def _left(self) -> str:
        total, rate = self._total(), self._rate()
        if total is None or not rate:
            return ""
        return duration(max(0.0, total - self._done()) / rate)


def duration(seconds: float) -> str:
    """`0:01:12`."""
    return str(timedelta(seconds=round(seconds)))


def _style(name: str, number: int) -> str:
    if not number:
        return "dim"
    return {"registered": "green", "rejected": "red", "failed": "red"}.get(name, "")
