"""Tables that fit: the columns that matter least give way."""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from rich.cells import cell_len, set_cell_size

from worker.cli import output

GAP = 2
IN_MEMORY = 4_000_000  # bytes; more of a long table goes to a temporary file


@dataclass(frozen=True, slots=True)
class Column:
    """A column that `text` fills from a row.

    Where room is short, columns give way from the highest `rank` down. One with `shrink_to` shrinks to no
    less than that: it shows `short` where it has one, else cells are cut, in the `middle` or at the end. One
    without goes. If that is not enough, the shrunk ones go too. Rank 0 stays whole."""

    title: str
    text: Callable[[dict[str, Any]], str]
    rank: int = 0
    shrink_to: int | None = None
    short: Callable[[dict[str, Any]], str] | None = None
    middle: bool = False


class TextTable:
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
            self._widths[i] = max(self._widths[i], cell_len(output.printable(column.text(row))))
        self._spool.write(json.dumps(row) + "\n")

    def print(self, width: int | None) -> None:
        """Print all rows, `width` columns wide or as wide as they are."""
        self._shown = _fit(self._columns, self._widths, width)
        self._print([column.title for column, _ in self._shown])
        for row in self._all():
            self._print([column.text(row) for column, _ in self._shown])

    def print_row(self, row: dict[str, Any]) -> None:
        """Print one more row below those that were printed; what is wider than they are is not cut."""
        cells = [output.printable(column.text(row)) for column, _ in self._shown]
        padded = [set_cell_size(c, max(w, cell_len(c))) for c, (_, w) in zip(cells, self._shown, strict=True)]
        output.write((" " * GAP).join(padded).rstrip())

    def print_json(self) -> None:
        """Print all rows as one JSON object a line."""
        for row in self._all():
            output.json_line(row)

    def _print(self, cells: list[str]) -> None:
        cut = [
            _cut(output.printable(cell), width, middle=column.middle)
            for cell, (column, width) in zip(cells, self._shown, strict=True)
        ]
        output.write((" " * GAP).join(cut).rstrip())

    def _all(self) -> Iterator[dict[str, Any]]:
        self._spool.seek(0)
        for text in self._spool:
            yield json.loads(text)


def _fit(columns: list[Column], widths: list[int], width: int | None) -> list[tuple[Column, int]]:
    shown = list(zip(columns, widths, strict=True))
    if width is None:
        return shown

    def over() -> int:
        return sum(w for _, w in shown) + GAP * (len(shown) - 1) - width

    giving_way = sorted((c for c in columns if c.rank), key=lambda column: -column.rank)
    for column in giving_way:
        if over() <= 0:
            return shown
        at = next(i for i, (each, _) in enumerate(shown) if each is column)
        if column.shrink_to is None:
            del shown[at]
        elif column.short is not None:
            shown[at] = (replace(column, text=column.short), min(shown[at][1], column.shrink_to))
        else:
            shown[at] = (column, min(shown[at][1], max(column.shrink_to, shown[at][1] - over())))
    for rank in (column.rank for column in giving_way):
        if over() > 0:
            shown = [(column, w) for column, w in shown if column.rank != rank]
    return shown


def _cut(text: str, width: int, *, middle: bool) -> str:
    if cell_len(text) > width:
        end = (width - 1) // 2 if middle else 0
        text = set_cell_size(text, width - 1 - end) + "…" + text[len(text) - end :]
    return set_cell_size(text, width)
