"""Tables that fit: the columns that matter least give way, ids are never cut."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.cells import cell_len, set_cell_size

from worker.cli import output

GAP = 2
IN_MEMORY = 4_000_000  # bytes; more of a long table goes to a temporary file


@dataclass(frozen=True, slots=True)
class Column:
    """A column that `text` fills from a row. Where room is short the column with the highest `rank` goes
    first; one with `shrink_to` is cut to no less than that before it goes, and one with `short` then shows
    that, in so many columns. Rank 0 stays whole."""

    title: str
    text: Callable[[dict[str, Any]], str]
    rank: int = 0
    shrink_to: int | None = None
    short: Callable[[dict[str, Any]], str] | None = None


class Table:
    """Rows, gathered first and printed when all are known. Rows hold nothing secret."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = list(columns)
        self._widths = [cell_len(column.title) for column in columns]
        self._spool = tempfile.SpooledTemporaryFile(IN_MEMORY, mode="w+", encoding="utf-8")  # noqa: SIM115
        self._shown: list[tuple[Column, int]] = []
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.rows += 1
        for i, column in enumerate(self._columns):
            self._widths[i] = max(self._widths[i], cell_len(_safe(column.text(row))))
        self._spool.write(json.dumps(row) + "\n")

    def print(self, width: int | None) -> None:
        """Print all rows, `width` columns wide or as wide as they are."""
        self._shown = _fit(self._columns, self._widths, width)
        _print([column.title for column, _ in self._shown], [w for _, w in self._shown])
        for row in self._all():
            _print([column.text(row) for column, _ in self._shown], [w for _, w in self._shown])

    def print_row(self, row: dict[str, Any]) -> None:
        """Print one more row below those that were printed; what is wider than they are is not cut."""
        cells = [column.text(row) for column, _ in self._shown]
        _print(cells, [max(w, cell_len(cell)) for (_, w), cell in zip(self._shown, cells, strict=True)])

    def print_json(self) -> None:
        """Print all rows as one JSON object a line."""
        for row in self._all():
            output.json_line(row)

    def _all(self) -> Iterator[dict[str, Any]]:
        self._spool.seek(0)
        for text in self._spool:
            yield json.loads(text)


def _fit(columns: list[Column], widths: list[int], width: int | None) -> list[tuple[Column, int]]:
    shown = list(zip(columns, widths, strict=True))
    if width is None:
        return shown
    while (over := sum(w for _, w in shown) + GAP * (len(shown) - 1) - width) > 0:
        at = max(range(len(shown)), key=lambda i: shown[i][0].rank)
        column, current = shown[at]
        if column.rank == 0:
            break
        if column.short is not None and column.shrink_to is not None:
            shown[at] = (Column(column.title, column.short, column.rank), column.shrink_to)
        elif column.shrink_to is not None and current - over >= column.shrink_to:
            shown[at] = (column, current - over)
        else:
            del shown[at]
    return shown


def _print(cells: list[str], widths: list[int]) -> None:
    padded = [_cut(_safe(cell), width) for cell, width in zip(cells, widths, strict=True)]
    output.write((" " * GAP).join(padded).rstrip())


def _cut(text: str, width: int) -> str:
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)


def _safe(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
