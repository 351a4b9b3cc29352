"""The properties of a message, kept as the bytes that arrived.

pamqp decodes every property of every message. One that it cannot decode (a correlation id that is not UTF-8,
a timestamp beyond the year 9999, headers nested a thousand deep) ends the connection; the message is
redelivered, ends the next connection, and no other message passes. Here a property is decoded when it is
read, an unreadable one counts as absent, and all are passed on byte for byte. Layout: AMQP 0-9-1 §4.2.5
(tables) and §4.2.6.1 (property flags)."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Self

from pamqp import decode, encode

from worker.contract.words import OWN_HEADERS, REDUCED_HEADER

HeaderValue = str | int | bool


_SHORT_STRING, _TABLE, _OCTET, _TIMESTAMP = "shortstr", "table", "octet", "timestamp"
# Names and kinds in the order of their flags; the first flag is the highest bit.
_LAYOUT = {
    "content_type": _SHORT_STRING,
    "content_encoding": _SHORT_STRING,
    "headers": _TABLE,
    "delivery_mode": _OCTET,
    "priority": _OCTET,
    "correlation_id": _SHORT_STRING,
    "reply_to": _SHORT_STRING,
    "expiration": _SHORT_STRING,
    "message_id": _SHORT_STRING,
    "timestamp": _TIMESTAMP,
    "type": _SHORT_STRING,
    "user_id": _SHORT_STRING,
    "app_id": _SHORT_STRING,
    "cluster_id": _SHORT_STRING,
}
_FLAGS = {name: 1 << 15 - number for number, name in enumerate(_LAYOUT)}

# RabbitMQ's own field types (rabbit_binary_parser), which differ from the specification's.
_SIZES = {b"V": 0, b"tbB": 1, b"su": 2, b"Iif": 4, b"D": 5, b"lLdT": 8}
_FIXED_SIZE = {kind: size for kinds, size in _SIZES.items() for kind in kinds}
_SIZED = frozenset(b"SxAF")
_UNSIGNED_SHORT = struct.Struct(">H")
_UNSIGNED_LONG = struct.Struct(">I")
_TEXT_ERRORS = "surrogateescape"  # echoes text that is not UTF-8 byte for byte


_NESTED = frozenset(b"AF")
LARGEST_NESTED = 16_384  # bytes; deep ones of 128 kB would hold the event loop for 0.4 s
_PLAIN = frozenset(b"tIlS")
_TEXTS = frozenset(name for name, kind in _LAYOUT.items() if kind == _SHORT_STRING)


class Properties:
    """Basic properties (contract §2). Reading never raises: an unreadable value is None."""

    __slots__ = ("_headers", "_raw")

    def __init__(self, raw: dict[str, bytes] | None = None) -> None:
        self._raw = raw if raw is not None else {}
        self._headers: dict[str, bytes] | None = None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Split the property flags and list of a content header. A list that is cut short, as only a broken
        broker sends it, is read as far as it goes."""
        raw: dict[str, bytes] = {}
        with suppress(struct.error, IndexError):
            (flags,) = _UNSIGNED_SHORT.unpack_from(data)
            at = 2
            for name, kind in _present(flags):
                end = at + (1 + data[at] if kind is _SHORT_STRING else _size(kind, data, at))
                if end > len(data):
                    break
                raw[name] = data[at:end]
                at = end
        return cls(raw)

    def text(self, name: str) -> str | None:
        """A short string. Bytes that are not UTF-8 become lone surrogates, so that they are echoed
        unchanged."""
        raw = self._raw.get(name)
        return raw[1:].decode("utf-8", _TEXT_ERRORS) if raw is not None else None

    @property
    def message_id(self) -> str | None:
        return self.text("message_id")

    def raw(self, name: str) -> bytes:
        """The encoded property, `b""` if absent."""
        return self._raw.get(name, b"")

    def header(self, name: str) -> object:
        """A header's value, or None if it is absent or unreadable."""
        entry = self._entries().get(name)
        if entry is None or (entry[0] in _NESTED and len(entry) > LARGEST_NESTED):
            return None
        try:
            return decode.embedded_value(entry)[1]
        except (ValueError, TypeError, ArithmeticError, RecursionError, OSError):
            return None

    def has_header(self, name: str) -> bool:
        """Whether the header is present, readable or not."""
        return name in self._entries()

    def header_names(self) -> Iterator[str]:
        """The names of all headers, in order."""
        return iter(self._entries())

    def changed(
        self,
        headers: Mapping[str, HeaderValue] | None = None,
        *,
        without: frozenset[str] = frozenset(),
        **texts: str | None,
    ) -> "Properties":
        """A copy with these headers and short strings. `without` names headers to remove, and a text of None
        removes that property. The rest is passed on byte for byte."""
        raw = dict(self._raw)
        for name, value in texts.items():
            if value is None:
                raw.pop(name, None)
            else:
                raw[name] = short_string(value)
        kept = {k: v for k, v in self._entries().items() if k not in without}
        kept.update((k, _header_value(v)) for k, v in (headers or {}).items())
        if kept:
            raw["headers"] = _table(kept)
        else:
            raw.pop("headers", None)
        return Properties(raw)

    def without_large_headers(self, limit: int) -> "Properties":
        """A copy whose encoding fits in `limit` bytes, because a content header cannot be split into several
        frames. The publisher's largest headers are removed first."""
        excess = len(self.encoded()) - limit
        if excess <= 0:
            return self
        entries = self._entries()
        dropped = set()
        # The worker's own headers last: an encrypted body needs its request id.
        for name in sorted(entries, key=lambda name: (name.startswith(OWN_HEADERS), -len(entries[name]))):
            if excess <= 0:
                break
            dropped.add(name)
            excess -= len(short_string(name)) + len(entries[name])
        return self.changed(without=frozenset(dropped))

    def reduced(self) -> "Properties":
        """Only the worker's own headers, encoded again (contract §2)."""
        own = ((name, self.header(name)) for name in self._entries() if name.startswith(OWN_HEADERS))
        kept = {name: value for name, value in own if isinstance(value, str | int)}
        return build(headers=kept | {REDUCED_HEADER: True})

    def with_text(self, name: str, value: str) -> "Properties":
        """A copy with this short string."""
        return Properties({**self._raw, name: short_string(value)})

    def persistent(self) -> "Properties":
        """A copy with delivery mode 2."""
        return Properties({**self._raw, "delivery_mode": b"\x02"})

    def plain(self) -> "Properties":
        """A copy that every client can decode: UTF-8 text, and headers that are numbers, booleans or text."""
        entries = {
            name: value
            for name, value in self._entries().items()
            if value[0] in _PLAIN and _is_utf8(name.encode("utf-8", _TEXT_ERRORS))
        }
        raw = {name: text for name, text in self._raw.items() if name in _TEXTS and _is_utf8(text[1:])}
        return Properties(raw | {"headers": _table(entries)} if entries else raw)

    def encoded(self) -> bytes:
        """Flags and list, as in a content header."""
        flags = 0
        parts = [b""]
        for name, flag in _FLAGS.items():
            value = self._raw.get(name)
            if value is not None:
                flags |= flag
                parts.append(value)
        parts[0] = _UNSIGNED_SHORT.pack(flags)
        return b"".join(parts)

    def canonical(self, without: frozenset[str]) -> bytes:
        """The encoding without these headers, the others sorted by name: RabbitMQ sorts them when it adds
        one."""
        kept = {name: value for name, value in sorted(self._entries().items()) if name not in without}
        return Properties({**self._raw, "headers": _table(kept)}).encoded()

    def _entries(self) -> dict[str, bytes]:
        if self._headers is None:
            self._headers = _read_table(self._raw.get("headers", b""))
        return self._headers


def build(
    *,
    headers: Mapping[str, HeaderValue] | None = None,
    timestamp: datetime | None = None,
    **texts: str | None,
) -> Properties:
    """Properties of a new persistent message. Texts are cut at 255 bytes, AMQP's limit."""
    raw = {"delivery_mode": b"\x02"}
    if timestamp is not None:
        raw["timestamp"] = encode.timestamp(timestamp)
    return Properties(raw).changed(headers, without=frozenset(), **texts)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=256)
def _present(flags: int) -> tuple[tuple[str, str], ...]:
    """Names and kinds of the properties that the flags announce, in order."""
    return tuple((name, kind) for name, kind in _LAYOUT.items() if flags & _FLAGS[name])


def _size(kind: str, data: bytes, at: int) -> int:
    if kind == _TABLE:
        return 4 + int(_UNSIGNED_LONG.unpack_from(data, at)[0])
    return 8 if kind == _TIMESTAMP else 1


def short_string(value: str) -> bytes:
    """The encoding of a short string, cut at 255 bytes."""
    encoded = value.encode("utf-8", _TEXT_ERRORS)
    if len(encoded) > 255:
        encoded = encoded[:255].decode("utf-8", "ignore").encode()
    return bytes((len(encoded),)) + encoded


def _header_value(value: HeaderValue) -> bytes:
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        return b"l" + struct.pack(">q", value)
    encoded = value.encode("utf-8", "replace")
    return b"S" + _UNSIGNED_LONG.pack(len(encoded)) + encoded


def _table(entries: Mapping[str, bytes]) -> bytes:
    body = b"".join(short_string(name) + value for name, value in entries.items())
    return _UNSIGNED_LONG.pack(len(body)) + body


def _read_table(data: bytes) -> dict[str, bytes]:
    """Header names to encoded types and values, one level deep: nested tables and arrays are skipped by their
    length, whatever their depth. Reading stops at a malformed entry."""
    entries: dict[str, bytes] = {}
    at = 4
    with suppress(struct.error, IndexError, KeyError):
        while at < len(data):
            start = at + 1 + data[at]
            kind = data[start]
            size = 4 + _UNSIGNED_LONG.unpack_from(data, start + 1)[0] if kind in _SIZED else _FIXED_SIZE[kind]
            end = start + 1 + size
            if end > len(data):
                break
            entries[data[at + 1 : start].decode("utf-8", _TEXT_ERRORS)] = data[start:end]
            at = end
    return entries
