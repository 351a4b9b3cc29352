"""One HTTP/1.1 response, read from the bytes of a connection (RFC 9112). Knows no socket.

The head decides what becomes of a request, so only the head must be whole. A body that is framed wrongly, is
cut short or comes in an unknown encoding never takes an answer away (contract §6). The parsers of HTTP
libraries reject such responses as a whole. Here only the connection is given up: after any irregularity it is
not used again.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

HEAD_LIMIT = 1_048_576  # bytes
BODY_LIMIT = 262_144  # bytes of a body that are kept
CHUNK_LINE_LIMIT = 4096  # bytes

_START = b"HTTP/"
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) +([1-9]\d\d)(?!\d)")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LENGTH = re.compile(r"[0-9]{1,15}")
_NO_BODY = frozenset({101, 204, 304})


class Response(NamedTuple):
    """A response. The names of `headers` are in lower case; fields of one name are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ResponseReader:
    """Takes the bytes that follow one request: `feed` it until it `is_done`, then take its `response`."""

    def __init__(self) -> None:
        self.has_head = False
        self.is_done = False
        self.keeps_connection = False  # the response is whole, and the next one may follow it
        self.status = 0
        self.headers: dict[str, str] = {}
        self._data = b""
        self._position = 0  # up to which `_data` is read
        self._read_body: Callable[[], None] | None = None
        self._length = 0
        self._chunks: list[bytes] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the beginning of a response has come."""
        return self.has_head or self._data.startswith(_START)

    @property
    def response(self) -> Response:
        """The response. Ask for it only if `has_head`."""
        body = self._data[self._position :] if self._chunks is None else b"".join(self._chunks)
        encoding = self.headers.get("content-encoding")
        if body and encoding:
            body = _decoded(body, encoding)
        return Response(self.status, self.headers, body[:BODY_LIMIT])

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.is_done:
            self.keeps_connection = False  # nobody asked for these
            return
        self._data = self._data + data if self._data else data
        if self._read_body is None:
            self._read_head()
        else:
            self._read_body()

    def end(self) -> None:
        """No more bytes come: the connection is gone, or nobody waits any longer."""
        self.is_done = True
        self.keeps_connection = False

    def _read_head(self) -> None:
        while True:
            if self._data[:1] in (b"\r", b"\n"):
                self._data = self._data.lstrip(b"\r\n")
            stop = self._data.find(b"\r\n\r\n")
            end = stop + 4
            if stop < 0 and (found := _HEAD_END.search(self._data)) is not None:
                stop, end = found.span()
            if stop < 0:
                if len(self._data) > HEAD_LIMIT or not _START.startswith(self._data[: len(_START)]):
                    self.end()
                return
            head = self._data[:stop]
            started = _STATUS_LINE.match(head)
            if started is None:
                self.end()
                return
            self.status = int(started[2])
            if self.status >= 200 or self.status == 101:
                self.has_head = True
                self._position = end
                self._frame(head, is_1_1=started[1] == b"1")
                return
            self._data = self._data[end:]  # an interim response; the next one follows
            if not self._data:
                return

    def _frame(self, head: bytes, *, is_1_1: bool) -> None:
        """Find out how the body ends (RFC 9112 §6.3), and read its first bytes."""
        self.headers = headers = _fields(head)
        coding, lengths = _tokens(headers, "transfer-encoding"), _tokens(headers, "content-length")
        self.keeps_connection = (
            is_1_1 and not (coding and lengths) and "close" not in _tokens(headers, "connection")
        )
        if self.status in _NO_BODY:
            self.keeps_connection &= self.status != 101 and not coding and lengths in ((), ["0"])
            self._read_body = self._read_length
        elif coding:
            self._chunks = [] if coding[-1] == "chunked" else None
            self._read_body = self._read_to_the_end if self._chunks is None else self._read_chunks
        elif lengths and lengths.count(lengths[0]) == len(lengths) and _LENGTH.fullmatch(lengths[0]):
            self._length = int(lengths[0])
            self._read_body = self._read_length
        else:
            self._read_body = self._read_to_the_end
        self._read_body()

    def _read_length(self) -> None:
        end = self._position + self._length
        if len(self._data) >= end:
            self.is_done = True
            if len(self._data) > end:
                # A length that counts characters is too small: what follows still belongs to the body. The
                # beginning of another response does not.
                self.keeps_connection = False
                if self._data.startswith(_START, end):
                    self._data = self._data[:end]
        elif len(self._data) - self._position > BODY_LIMIT:
            self.end()

    def _read_to_the_end(self) -> None:
        self.keeps_connection = False
        if len(self._data) - self._position > BODY_LIMIT:
            self.end()

    def _read_chunks(self) -> None:
        data, chunks = self._data, self._chunks
        assert chunks is not None
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


def _decoded(body: bytes, encoding: str) -> bytes:
    """The body without its encoding, as far as it can be decoded."""
    windows = {"gzip": (47,), "x-gzip": (47,), "deflate": (47, -15)}.get(encoding.lower(), ())
    for window in windows:
        try:
            return zlib.decompressobj(window).decompress(body, BODY_LIMIT)
        except zlib.error:
            continue
    return body
