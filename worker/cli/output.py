"""Standard output, for terminals, files and pipes that end early."""

import contextlib
import json
import os
import sys
from typing import Any

import typer

_encode = json.JSONEncoder(ensure_ascii=False).encode


def line(text: str) -> None:
    """Write a line; what cannot be shown, or would command the terminal, is replaced."""
    write("".join(c if c.isprintable() else "\ufffd" for c in text))


def json_line(document: dict[str, Any]) -> None:
    """Write one JSON object."""
    write(_encode(document).encode(errors="replace").decode())


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


def width() -> int | None:
    """Columns of the terminal, None where there is none."""
    if not sys.stdout.isatty():
        return None
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    return None
