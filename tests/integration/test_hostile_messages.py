"""Every kind of bad input gets an error envelope and a dead letter; nothing crashes, blocks or leaks."""

import socket
import struct
from typing import Self
from urllib.parse import urlsplit

import pytest

from tests.rig import messenger


def shortstr(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def table(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


DEEP = b"".join(b"A" + struct.pack(">I", 5 * (5_000 - i - 1)) for i in range(5_000))
HOSTILE = {
    "a correlation id that is not UTF-8": (1 << 10, shortstr(b"\xff\xfe")),
    "a message id that is not UTF-8": (1 << 7, shortstr(b"\x80id")),
    "a reply_to that is not UTF-8": (1 << 9, shortstr(b"\xc3(")),
    "a timestamp beyond all years": (1 << 6, b"\xff" * 8),
    "a header name that is not UTF-8": (1 << 13, table(shortstr(b"\xff") + b"t\x01")),
    "a header time beyond all years": (1 << 13, table(shortstr(b"t") + b"T" + b"\xff" * 8)),
    "a decimal of scale 255": (1 << 13, table(shortstr(b"d") + b"D\xff\x7f\xff\xff\xff")),
    "headers 5,000 levels deep": (1 << 13, table(shortstr(b"a") + DEEP)),
    # Each of these has stopped somebody's consumer:
    "a timestamp in milliseconds": (1 << 6, struct.pack(">Q", 1_694_787_600_000)),
    "a header that is not UTF-8": (1 << 13, table(shortstr(b"foo") + b"S" + table(b"\x8d"))),
    "a header time before 1970": (1 << 13, table(shortstr(b"t") + b"T" + struct.pack(">q", -14_256_000))),
    "an x-death that is text": (1 << 13, table(shortstr(b"x-death") + b"S" + table(b"[{queue=some}]"))),
    "an x-death of lists": (
        1 << 13,
        table(shortstr(b"x-death") + b"A" + table(b"A" + table(b"S" + table(b"expired")))),
    ),
    "headers that fill a whole frame": (1 << 13, table(shortstr(b"a") + b"S" + table(b"x" * 130_900))),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_property_that_would_end_other_clients_does_no_harm(rig, requester, name):
    flags, properties = HOSTILE[name]
    url = rig.settings().amqp_url.get_secret_value()
    for body in (messenger("raw"), b"broken"):
        publish_raw(url, f"{requester.prefix}.requests", flags, properties, body)
    assert (await requester.ask(messenger()))["status"] == "registered"
    letter = peek_raw(url, f"{requester.prefix}.dead")
    assert b"broken" in letter
    if flags != 1 << 13:
        assert properties in letter


def publish_raw(url: str, queue: str, flags: int, properties: bytes, body: bytes) -> None:
    """Publish with property bytes that no client library would write, and wait until it is confirmed."""
    with Raw(url) as raw:
        raw.method(85, 10, b"\0")  # confirm.select
        raw.await_method(85, 11)
        raw.method(60, 40, struct.pack(">H", 0) + shortstr(b"") + shortstr(queue.encode()) + b"\0")
        raw.frame(2, struct.pack(">HHQH", 60, 0, len(body), flags) + properties)
        if body:
            raw.frame(3, body)
        raw.await_method(60, 80)


def peek_raw(url: str, queue: str) -> bytes:
    """The frames of the queue's next message, as they travelled."""
    with Raw(url) as raw:
        while True:
            raw.method(60, 70, struct.pack(">H", 0) + shortstr(queue.encode()) + b"\1")
            method = raw.next_frame()
            if method[:4] == struct.pack(">HH", 60, 71):
                header = raw.next_frame()
                size = struct.unpack(">Q", header[4:12])[0]
                body = b""
                while len(body) < size:
                    body += raw.next_frame()
                return header + body


class Raw:
    """Just enough AMQP 0-9-1 to send what a library refuses to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=10)
        self._file = self._socket.makefile("rb")
        self._login = f"\0{parts.username or 'guest'}\0{parts.password or 'guest'}".encode()
        self._channel = 0

    def __enter__(self) -> Self:
        self._socket.sendall(b"AMQP\0\0\x09\x01")
        self.await_method(10, 10)
        self.method(10, 11, table(b"") + shortstr(b"PLAIN") + table(self._login) + shortstr(b"en_US"))
        self.await_method(10, 30)
        self.method(10, 31, struct.pack(">HIH", 10, 131072, 0))
        self.method(10, 40, shortstr(b"/") + b"\0\0")
        self.await_method(10, 41)
        self._channel = 1
        self.method(20, 10, shortstr(b""))
        self.await_method(20, 11)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def frame(self, kind: int, payload: bytes) -> None:
        self._socket.sendall(struct.pack(">BHI", kind, self._channel, len(payload)) + payload + b"\xce")

    def method(self, class_id: int, method_id: int, arguments: bytes) -> None:
        self.frame(1, struct.pack(">HH", class_id, method_id) + arguments)

    def next_frame(self) -> bytes:
        head = self._file.read(7)
        assert len(head) == 7, "the broker closed the connection"
        size = struct.unpack(">I", head[3:])[0]
        return self._file.read(size + 1)[:-1]

    def await_method(self, class_id: int, method_id: int) -> None:
        while (got := self.next_frame())[:4] != struct.pack(">HH", class_id, method_id):
            assert got[:4] not in (struct.pack(">HH", 10, 50), struct.pack(">HH", 20, 40)), got
