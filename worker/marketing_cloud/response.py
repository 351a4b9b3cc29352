"""Parses one HTTP/1.1 response from the bytes of a connection (RFC 9112). No I/O.

The head decides the outcome of a request, so only the head must be complete. A body that is framed wrongly,
cut short or in an unknown encoding never hides an answer (contract §6), although HTTP libraries reject such
responses. After any irregularity only the connection is closed."""

import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

HEAD_LIMIT = 1_048_576  # bytes
BODY_LIMIT = 262_144  # bytes that are kept
CHUNK_LINE_LIMIT = 4096  # bytes

_START = b"HTTP/"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) +([1-9]\d\d)(?!\d)")
_HEAD_END = re.compile(rb"\n\r?\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LENGTH = re.compile(r"[0-9]{1,15}")
_NO_BODY = frozenset({101, 204, 304})
_ANY_FORMAT = 32 + zlib.MAX_WBITS  # gzip or zlib


class Response(NamedTuple):
    """A response. Header names are in lower case; repeated fields are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ResponseReader:
    """Reads the bytes that follow one request: `feed` it until it `is_done`, then read `response`."""

    def __init__(self) -> None:
        self.has_head = False
        self.is_done = False
        self.keeps_connection = False  # the response is complete, and another one may follow it
        self.status = 0
        self.headers: dict[str, str] = {}
        self._data = b""
        self._position = 0  # how far `_data` is read
        self._length: int | None = 0  # of the body; None if it ends with the connection
        self._chunks: list[bytes] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the beginning of a response has arrived."""
        return self.has_head or self._data.lstrip(b"\r\n").startswith(_START)

    @property
    def response(self) -> Response:
        """The response; valid only if `has_head`."""
        body = self._data[self._position :] if self._chunks is None else b"".join(self._chunks)
        if body and "content-encoding" in self.headers:
            with suppress(zlib.error):  # an unknown encoding
                body = zlib.decompressobj(_ANY_FORMAT).decompress(body, BODY_LIMIT)
        return Response(self.status, self.headers, body[:BODY_LIMIT])

    def feed(self, data: bytes) -> None:
        """Parse the next bytes."""
        if self.is_done:
            self.keeps_connection = False  # unsolicited bytes
            return
        self._data = self._data + data if self._data else data
        if not self.has_head:
            self._read_head()
        if self.has_head:
            self._read_body()

    def end(self) -> None:
        """No more bytes follow: the connection is closed, or the caller has stopped waiting."""
        self.is_done = True
        self.keeps_connection = False

    def _read_head(self) -> None:
        while (found := _HEAD_END.search(self._data.lstrip(b"\r\n"))) is not None:
            self._data = data = found.string
            started = _STATUS_LINE.match(data, 0, found.start())
            if started is None:
                self.end()
                return
            self.status = int(started[2])
            if self.status >= 200 or self.status == 101:
                self.has_head = True
                self._position = found.end()
                self._frame(data[: found.start()], is_1_1=started[1] == b"1")
                return
            self._data = data[found.end() :]  # an interim response; the next one follows
        beginning = self._data.lstrip(b"\r\n")[: len(_START)]
        if len(self._data) > HEAD_LIMIT or not _START.startswith(beginning):
            self.end()

    def _frame(self, head: bytes, *, is_1_1: bool) -> None:
        """Determine how the body ends (RFC 9112 §6.3)."""
        self.headers = headers = _fields(head)
        coding, lengths = _tokens(headers, "transfer-encoding"), _tokens(headers, "content-length")
        self.keeps_connection = (
            is_1_1 and not (coding and lengths) and "close" not in _tokens(headers, "connection")
        )
        if self.status in _NO_BODY:
            self.keeps_connection &= self.status != 101 and not coding and lengths in ((), ["0"])
        elif coding:
            self._length, self._chunks = None, [] if coding[-1] == "chunked" else None
        elif lengths and lengths.count(lengths[0]) == len(lengths) and _LENGTH.fullmatch(lengths[0]):
            self._length = int(lengths[0])
        else:
            self._length = None

    def _read_body(self) -> None:
        if self._chunks is not None:
            self._read_chunks(self._chunks)
            return
        length = len(self._data) - self._position
        if self._length is None or length < self._length:
            self.keeps_connection &= self._length is not None
            if length > BODY_LIMIT:
                self.end()
            return
        self.is_done = True
        if length > self._length:
            # A length that counts characters is too small: the following bytes belong to the body, unless
            # they begin another response.
            self.keeps_connection = False
            end = self._position + self._length
            if self._data.startswith(_START, end):
                self._data = self._data[:end]

    def _read_chunks(self, chunks: list[bytes]) -> None:
        data = self._data
        if len(data) > 2 * BODY_LIMIT:
            chunks.append(data[self._position :])
            self.end()
            return
        while True:
            line_end = data.find(b"\n", self._position)
            if line_end < 0 and len(data) - self._position <= CHUNK_LINE_LIMIT:
                return
            size = _CHUNK_SIZE.match(data, self._position, max(line_end, 0))
            if size is None:
                self.end()
                return
            start = line_end + 1
            stop = start + int(size[0], 16)
            if len(data) < stop + 2:
                return
            if start == stop:  # after a trailer the connection is not used again
                self.is_done = True
                self.keeps_connection &= data[start:] == b"\r\n"
                return
            chunks.append(data[start:stop])
            self._position = stop + 2


def _fields(head: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _tokens(headers: Mapping[str, str], name: str) -> Sequence[str]:
    value = headers.get(name)
    if value is None:
        return ()
    if "," not in value:
        return [value.lower()]
    return [token.strip().lower() for token in value.split(",") if token.strip()]
