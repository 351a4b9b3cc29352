"""Standard output to terminals, files and pipes that close early; and tables."""

import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from rich.cells import cell_len, set_cell_size

GAP = 2  # between two columns of a table

_encode = json.JSONEncoder(ensure_ascii=False).encode
_JOINERS = frozenset("\u200c\u200d")  # Persian, Hindi and emoji need them
_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidi marks, lone surrogates, line ends


def printable(text: str) -> str:
    """The text, with escapes such as `\\x1b` for characters that control a terminal or reorder a line:
    controls, DEL, bidirectional marks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in _CONTROLS and char not in _JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def line(text: str) -> None:
    """Write a `printable` line."""
    write(printable(text))


def json_line(document: Mapping[str, Any]) -> None:
    """Write one JSON object. Control characters are escaped, which changes no value."""
    text = _encode(document).encode(errors="replace").decode()
    if not text.isprintable():
        text = "".join(json.dumps(c)[1:-1] if _is_control(c) else c for c in text)
    write(text)


def write(text: str) -> None:
    """Write a line unchanged."""
    with _for_a_reader():
        sys.stdout.write(f"{text}\n")


def flush() -> None:
    """Flush standard output."""
    with _for_a_reader():
        sys.stdout.flush()


@contextlib.contextmanager
def _for_a_reader() -> Iterator[None]:
    """If the reader has closed the pipe, as `head` does, end the command without an error."""
    try:
        yield
    except BrokenPipeError:
        abandon()
        raise typer.Exit(0) from None


def abandon() -> None:
    """Discard buffered and further output, so that the interpreter reports no error at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def width() -> int | None:
    """Columns of the terminal, None without one."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    return None


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `text` returns its cell of a row. If the terminal is too narrow, columns are left out,
    highest `rank` first (rank 0 never), and those with a `least` width are cut."""

    title: str
    text: Callable[[Any], str]
    rank: int = 0
    least: int = 0


class Table:
    """The columns that fit in `width` (all if it is None), as wide as the rows need. Rich has no such columns
    and takes a millisecond per row; lists can have 65,000 rows."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Any], width: int | None) -> None:
        cells = {column: [printable(column.text(row)) for row in rows] for column in columns}
        self._widths = {column: max(map(cell_len, (column.title, *cells[column]))) for column in columns}
        if width is not None:
            self._fit(width)
        self._rows = zip(*(cells[column] for column in self._widths), strict=True)

    def _fit(self, width: int) -> None:
        widths = {column: min(column.least or full, full) for column, full in self._widths.items()}

        def spare() -> int:
            return width - sum(widths.values()) - GAP * (len(widths) - 1)

        for column in sorted(widths, key=lambda column: -column.rank):
            if spare() < 0 and column.rank:
                del widths[column]
        for column, least in widths.items():
            widths[column] = max(least, min(least + spare(), self._widths[column]))
        self._widths = widths

    def print(self) -> None:
        """Print the titles and the rows."""
        self._print([column.title for column in self._widths])
        for cells in self._rows:
            self._print(cells)

    def print_row(self, row: Any) -> None:
        """Print one more row, uncut."""
        self._print([printable(column.text(row)) for column in self._widths], is_cut=False)

    def _print(self, cells: Sequence[str], *, is_cut: bool = True) -> None:
        fitted = []
        for text, width in zip(cells, self._widths.values(), strict=True):
            is_long = is_cut and cell_len(text) > width
            shown = f"{set_cell_size(text, width - 1)}…" if is_long else text
            fitted.append(shown + " " * (width - cell_len(shown)))
        write((" " * GAP).join(fitted).rstrip())


def time_of(name: str) -> Callable[[Any], str]:
    """The time in a row's field: `2026-11-23 12:00:00`, or `-`."""
    return lambda row: str(row.get(name) or "-")[:19].replace("T", " ")


def text_of(name: str) -> Callable[[Any], str]:
    """A row's field, or `-`."""
    return lambda row: "-" if row.get(name) in (None, "") else str(row[name])
