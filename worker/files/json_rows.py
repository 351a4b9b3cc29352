"""Rows of JSON input, cut apart without being parsed: a row that is broken spoils no other, and no more
than one row is held."""

import re
from collections.abc import Iterable, Iterator

from worker.files.source import LONGEST_ROW, Unreadable

_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'["\\]')
_QUOTE, _BACKSLASH, _COMMA = b'"', b"\\", b","
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")
_BLANK = b" \t\r\n"
_NOT_BLANK = re.compile(rb"[^ \t\r\n]")


Numbered = tuple[int, bytes]
"""The line on which a value begins, and the value."""


def lines(chunks: Iterable[bytes]) -> Iterator[Numbered]:
    """Each line that is not blank, stripped. Raises Unreadable for an endless one."""
    pending, number, blank = b"", 0, 0
    for chunk in chunks:
        blank = blank + len(chunk) if chunk.isspace() else 0
        if blank > LONGEST_ROW:
            raise Unreadable(
                f"there are more than {LONGEST_ROW:,} blank lines or spaces: is it the right file?"
            )
        if blank and not pending:
            number += chunk.count(b"\n")
            continue
        *complete, rest = (pending + chunk).split(b"\n") if pending else chunk.split(b"\n")
        for number, line in enumerate(complete, number + 1):  # noqa: B020 (counted on over chunks)
            if stripped := line.strip():
                yield number, stripped
        pending = rest
        _check_length(len(pending))
    if pending.strip():
        yield number + 1, pending.strip()


def array(chunks: Iterable[bytes]) -> Iterator[Numbered]:
    """Each element of one JSON array. Raises Unreadable where the array ends early or is unbalanced."""
    return _Scanner(chunks).array()


def documents(chunks: Iterable[bytes]) -> Iterator[Numbered]:
    """Each of several JSON objects that follow one another, over as many lines as they like."""
    return _Scanner(chunks).documents()


class _Scanner:
    """Finds where values end: by brackets and quotes, which no byte of a UTF-8 letter can be."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()
        self._at = 0
        self._line = 1  # on which the buffer begins

    def array(self) -> Iterator[Numbered]:
        self._skip_blank()
        self._at += 1  # the opening bracket, by which the format was recognised
        self._take()
        end = _COMMA
        while end == _COMMA:
            self._skip_blank()
            line = self._line
            element, end = self._next(in_array=True)
            if element or end == _COMMA:
                yield line, element
        if self._skip_blank():
            raise Unreadable("there is more after the end of the array: put all rows into one array")

    def documents(self) -> Iterator[Numbered]:
        while self._skip_blank():
            line = self._line
            document, _ = self._next(in_array=False)
            yield line, document

    def _next(self, *, in_array: bool) -> tuple[bytes, bytes]:
        """The bytes of the next value, and the mark at its end (in an array, the comma or bracket behind)."""
        depth = 0
        while True:
            mark = self._next_mark()
            if mark == _QUOTE:
                self._skip_string()
            elif mark in _OPENING:
                depth += 1
            elif in_array and depth == 0 and mark != b"}":
                return self._take()[:-1].strip(_BLANK), mark
            elif mark in _CLOSING:
                depth -= 1
                if depth < 0:
                    raise Unreadable("a closing bracket has no opening one")
                if depth == 0 and not in_array:
                    return self._take().strip(_BLANK), mark

    def _next_mark(self) -> bytes:
        while (found := _STRUCTURE.search(self._buffer, self._at)) is None:
            self._at = len(self._buffer)
            self._fill()
        self._at = found.end()
        return found.group()

    def _skip_string(self) -> None:
        while True:
            while (found := _IN_STRING.search(self._buffer, self._at)) is None:
                self._at = len(self._buffer)
                self._fill()
            self._at = found.end()
            if found.group() == _QUOTE:
                return
            while self._at >= len(self._buffer):
                self._fill()
            self._at += 1  # what the backslash escapes

    def _take(self) -> bytes:
        taken = bytes(self._buffer[: self._at])
        self._drop(self._at)
        return taken

    def _drop(self, size: int) -> None:
        self._line += self._buffer.count(b"\n", 0, size)
        del self._buffer[:size]
        self._at = 0

    def _skip_blank(self) -> bool:
        """Skip white space; whether anything follows."""
        while True:
            found = _NOT_BLANK.search(self._buffer)
            self._drop(found.start() if found else len(self._buffer))
            if found:
                return True
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._buffer += chunk

    def _fill(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise Unreadable("the input ends in the middle of the next row: is it complete?")
        self._buffer += chunk
        _check_length(len(self._buffer) - len(chunk))


def _check_length(length: int) -> None:
    if length > LONGEST_ROW:
        raise Unreadable(f"the next row is longer than {LONGEST_ROW:,} bytes: is a quotation mark missing?")
