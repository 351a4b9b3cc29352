"""How far a change has come, on a terminal."""

import contextlib
from collections.abc import Iterator

from rich import progress as rich
from rich.console import Console

from worker.dead_letters.box import Progress


@contextlib.contextmanager
def progress_bar(title: str, total: int, progress: Progress) -> Iterator[None]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        progress.tell = lambda: bar.update(task, completed=progress.done + progress.unfit)
        yield
