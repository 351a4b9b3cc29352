"""Just enough AMQP 1.0 to publish what AMQP 0-9-1 cannot say. RabbitMQ speaks it from 4.0 on."""

import socket
import struct
from typing import BinaryIO
from urllib.parse import urlsplit
from uuid import UUID

NULL, TRUE, FALSE, ZERO = b"\x40", b"\x41", b"\x42", b"\x43"
UUID_7 = b"\x98" + UUID(int=7).bytes


def publish_with_uuid(url: str, queue: str, body: bytes) -> None:
    """Publish one message with a UUID in an application property, which AMQP 0-9-1 does not have."""
    publish(url, queue, body, {"u": UUID_7})


def publish(url: str, queue: str, body: bytes, application: dict[str, bytes], sections: bytes = b"") -> None:
    """Publish one message with these application properties, and with other sections before them, and wait
    until it is taken."""
    entries = (part for name, value in application.items() for part in (_text(name), value))
    properties = b"\x00\x53\x74" + _map(*entries)
    message = sections + properties + b"\x00\x53\x75" + _binary(body)
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 5672), timeout=10) as wire:
        stream = wire.makefile("rwb")
        login = f"\0{parts.username or 'guest'}\0{parts.password or 'guest'}".encode()
        _send(stream, b"AMQP\x03\x01\x00\x00")
        assert stream.read(8) == b"AMQP\x03\x01\x00\x00"
        _read(stream)
        _send(stream, _frame(_described(0x41, b"\xa3\x05PLAIN", _binary(login)), kind=1))
        _read(stream)
        _send(stream, b"AMQP\x00\x01\x00\x00")
        assert stream.read(8) == b"AMQP\x00\x01\x00\x00"
        window = b"\x70" + struct.pack(">I", 100)
        target = _described(0x29, _text(f"/queues/{queue}"))
        link = (_text("link"), ZERO, FALSE, NULL, NULL, _described(0x28), target, NULL, NULL, ZERO)
        for performative in (
            _described(0x10, _text("test")),
            _described(0x11, NULL, ZERO, window, window),
            _described(0x12, *link),
        ):
            _send(stream, _frame(performative))
        while _read(stream)[2] != 0x13:  # flow: the broker takes messages
            pass
        _send(stream, _frame(_described(0x14, ZERO, ZERO, _binary(b"1"), ZERO, FALSE) + message))
        while _read(stream)[2] != 0x15:  # disposition
            pass


def _text(text: str) -> bytes:
    return b"\xa1" + bytes((len(text),)) + text.encode()


def _binary(data: bytes) -> bytes:
    return b"\xb0" + struct.pack(">I", len(data)) + data


def _map(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return b"\xd1" + struct.pack(">II", len(content) + 4, len(entries)) + content


def _described(code: int, *fields: bytes) -> bytes:
    content = b"".join(fields)
    return (
        b"\x00\x53" + bytes((code,)) + b"\xd0" + struct.pack(">II", len(content) + 4, len(fields)) + content
    )


def _frame(content: bytes, kind: int = 0) -> bytes:
    return struct.pack(">IBBH", len(content) + 8, 2, kind, 0) + content


def _send(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.flush()


def _read(stream: BinaryIO) -> bytes:
    (size,) = struct.unpack(">I", stream.read(4))
    return bytes(stream.read(size - 4)[4:])


# Sections of messages that RabbitMQ cannot deliver over AMQP 0-9-1.
UNDELIVERABLE = {
    "a UUID in an annotation": b"\x00\x53\x72" + _map(b"\xa3\x05x-key", UUID_7),
    "an array of UUIDs": b"\x00\x53\x72" + _map(b"\xa3\x05x-key", b"\xe0\x12\x01" + UUID_7),
    "a content type of 300 bytes": _described(0x73, *[NULL] * 6, b"\xb3\x00\x00\x01\x2c" + b"t" * 300),
    "a content encoding of 300 bytes": _described(0x73, *[NULL] * 7, b"\xb3\x00\x00\x01\x2c" + b"e" * 300),
}

# Application properties of each type that RabbitMQ can deliver over AMQP 0-9-1.
DELIVERABLE = {
    "true": TRUE,
    "boolean": b"\x56\x00",
    "ubyte": b"\x50\xfe",
    "ushort": b"\x60\xff\xfe",
    "uint": b"\x70\xff\xff\xff\xfe",
    "ulong": b"\x80" + b"\x00" * 7 + b"\xfe",
    "byte": b"\x51\xfe",
    "short": b"\x61\xff\xfe",
    "int": b"\x71\xff\xff\xff\xfe",
    "long": b"\x81" + b"\xff" * 7 + b"\xfe",
    "float": b"\x72" + struct.pack(">f", 1.5),
    "double": b"\x82" + struct.pack(">d", 1.5),
    "timestamp": b"\x83" + struct.pack(">q", 1_700_000_000_000),
    "binary": _binary(b"\x00\xff"),
    "string": _text("text"),
    "symbol": b"\xa3\x04text",
}
