"""Tables that fit the terminal. (rich's take a millisecond a row, and lists can have 65,000.)"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len, set_cell_size

from worker.cli import output

GAP = 2
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column that `text` fills from a row. Where room is short, those with the highest `rank` go first, and
    those with a `least` width are cut: those with rank 0 stay."""

    title: str
    text: Callable[[Row], str]
    rank: int = 0
    least: int = 0


class Table:
    """The columns that fit in `width` (all of them where that is None), as wide as the rows need."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Row], width: int | None) -> None:
        self._rows = [[output.printable(column.text(row)) for column in columns] for row in rows]
        widths = {
            column: max(cell_len(column.title), *(cell_len(cells[i]) for cells in self._rows), 0)
            for i, column in enumerate(columns)
        }

        def over() -> int:
            return 0 if width is None else sum(widths.values()) + GAP * (len(widths) - 1) - width

        def cut() -> int:
            """What the columns that can be cut can give."""
            return sum(
                widths[column] - min(column.least, widths[column]) for column in widths if column.least
            )

        for column in sorted(columns, key=lambda column: -column.rank):
            if over() > cut() and column.rank:
                del widths[column]
        for column, width_ in list(widths.items()):
            if column.least and over() > 0:
                widths[column] = max(min(column.least, width_), width_ - over())
        self._columns = columns
        self._shown = [(i, column, widths[column]) for i, column in enumerate(columns) if column in widths]

    def print(self) -> None:
        """Print the titles and the rows."""
        self._print([column.title for column in self._columns])
        for cells in self._rows:
            self._print(cells)

    def print_row(self, row: Row) -> None:
        """Print one more row; nothing of it is cut."""
        cells = [output.printable(column.text(row)) for column in self._columns]
        self._print(cells, is_cut=False)

    def _print(self, cells: Sequence[str], *, is_cut: bool = True) -> None:
        fitted = []
        for i, _, width in self._shown:
            length = cell_len(cells[i])
            text = set_cell_size(cells[i], width - 1) + "…" if is_cut and length > width else cells[i]
            fitted.append(set_cell_size(text, max(width, cell_len(text))))
        output.write((" " * GAP).join(fitted).rstrip())


def time_of(name: str) -> Callable[[Row], str]:
    """The time in a row's field: `2026-11-23 12:00:00`, or `-`."""
    return lambda row: text[:19].replace("T", " ") if isinstance(text := row.get(name), str) else "-"


def text_of(name: str) -> Callable[[Row], str]:
    """A row's field, or `-`."""
    return lambda row: "-" if row.get(name) in (None, "") else str(row[name])
