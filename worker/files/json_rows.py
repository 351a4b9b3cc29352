"""Rows of JSON input, cut apart without being parsed: a row that is broken spoils no other, and no more
than one row is held."""

import re
from collections.abc import Iterable, Iterator

from worker.files.source import LONGEST_ROW, Unreadable

# A whole string, a mark of structure, or a quotation mark whose string is not there as a whole. No byte of a
# longer UTF-8 letter can be one of them.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},"]', re.DOTALL)
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}

Numbered = tuple[int, bytes]
"""The line on which a value begins, and the value."""


def lines(chunks: Iterable[bytes]) -> Iterator[Numbered]:
    """Each line that is not blank, stripped. Raises Unreadable for an endless one."""
    pending, number = b"", 0
    for chunk in chunks:
        *complete, pending = (pending + chunk).split(b"\n")
        for number, line in enumerate(complete, number + 1):  # noqa: B020 (counted on over chunks)
            if stripped := line.strip():
                yield number, stripped
        _check_length(len(pending))
    if pending.strip():
        yield number + 1, pending.strip()


def values(chunks: Iterable[bytes], *, in_array: bool) -> Iterator[Numbered]:
    """Each element of one JSON array, or each of several objects that follow one another, over as many lines
    as they like. Raises Unreadable where the input ends early or is unbalanced."""
    buffer = bytearray()
    at, line = 0, 1
    depth, is_over = -1 if in_array else 0, False  # 0 between two values, -1 outside the array
    for chunk in chunks:
        buffer += chunk
        while not is_over and (found := _TOKEN.search(buffer, at)):
            mark, at = found.group(), found.end()
            if mark == b'"':
                at = found.start()
                break
            depth += _DEEPER.get(mark, 0)
            if depth < 0 and (mark != b"]" or not in_array):
                raise Unreadable("a closing bracket has no opening one")
            ends = depth < 0 or (depth == 0 and mark in (b"[," if in_array else b"]}"))
            if not ends:
                continue
            is_over = depth < 0
            taken = bytes(buffer[:at])
            del buffer[:at]
            at, begins = 0, line + _blank_lines(taken)
            line += taken.count(b"\n")
            value = (taken[:-1] if in_array else taken).strip()
            if value or mark == b",":
                yield begins, value
        else:
            at = len(buffer)
        if is_over and buffer.strip():
            raise Unreadable("there is more after the end of the array: put all rows into one array")
        _check_length(len(buffer))
    if buffer.strip() or (in_array and not is_over):
        raise Unreadable("the input ends in the middle of the next row: is it complete?")


def _blank_lines(taken: bytes) -> int:
    return taken.count(b"\n", 0, len(taken) - len(taken.lstrip()))


def _check_length(length: int) -> None:
    if length > LONGEST_ROW:
        raise Unreadable(f"the next row is longer than {LONGEST_ROW:,} bytes: is a quotation mark missing?")
