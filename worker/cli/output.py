"""Standard output, for terminals, files and pipes that end early."""

import contextlib
import io
import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 10_000  # columns

_encode = json.JSONEncoder(ensure_ascii=False).encode
_JOINERS = frozenset("\u200c\u200d")  # Persian, Hindi and emoji are written with them
_CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidi marks, lone surrogates, line ends


def printable(text: str) -> str:
    """The text with escapes such as `\\x1b` for what would command a terminal or reorder its line: controls,
    DEL, bidirectional marks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if _is_control(c) else c for c in text)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in _CONTROLS and char not in _JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def line(text: str) -> None:
    """Write a line, as `printable`."""
    write(printable(text))


def json_line(document: dict[str, Any]) -> None:
    """Write one JSON object; what would command a terminal is escaped, which changes no value."""
    text = _encode(document).encode(errors="replace").decode()
    if not text.isprintable():
        text = "".join(json.dumps(c)[1:-1] if _is_control(c) else c for c in text)
    write(text)


def write(text: str) -> None:
    """Write a line as it is. A reader that has gone away, such as `head`, ends the command quietly."""
    try:
        sys.stdout.write(f"{text}\n")
    except BrokenPipeError:
        _give_up()


def flush() -> None:
    """Let out what was written."""
    if sys.stdout is None:
        return  # closed before the start
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up()


def abandon() -> None:
    """Write no more: what is still held back would make the interpreter complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _give_up() -> None:
    abandon()
    raise typer.Exit(0)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> None:
    """Write rows below their titles, after an empty line, `columns` wide or as wide as they are. Nothing
    without rows."""
    if not rows:
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        grid.add_column(Text(title), no_wrap=True, overflow="ellipsis")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(width=columns or UNLIMITED, color_system=None, file=io.StringIO(), legacy_windows=False)
    console.print(grid)
    write("")
    for text in console.file.getvalue().splitlines():  # type: ignore[attr-defined]
        write(text.rstrip())


def width() -> int | None:
    """Columns of the terminal, None where there is none."""
    if not sys.stdout.isatty():
        return None
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    return None
