"""What a job came to, for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.cli.submit.progress import duration
from worker.files.progress import FIRST_ROWS, ErrorGroup, Tally

ORDER = ("registered", "rejected", "failed", "invalid", "superseded")
PIPE_WIDTH = 200  # columns, where there is no terminal


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
