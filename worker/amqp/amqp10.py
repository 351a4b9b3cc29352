"""A minimal AMQP 1.0 consumer that removes messages which RabbitMQ cannot deliver over AMQP 0-9-1.

From 4.0 on, publishers can speak AMQP 1.0. If a message has a property of a type that AMQP 0-9-1 lacks,
RabbitMQ closes the consumer's connection and redelivers the message, up to the delivery limit. An AMQP 1.0
consumer does receive it. This one returns it as failed until the limit is reached, on one connection, in a
second or two. Layouts: OASIS AMQP 1.0, parts 1 (types) and 2 (transport)."""

import asyncio
import struct
from enum import Enum
from typing import Any, Final, NamedTuple

from yarl import URL

from worker.amqp.connection import Connection, port_of, tls_context, vhost_of
from worker.errors import BrokerUnreachable
from worker.settings import Settings

TIMEOUT: Final = 30.0  # seconds for all deliveries
ANSWER_TIMEOUT: Final = 5.0  # seconds for one
QUIET_AFTER: Final = 1.0  # seconds without such a message
WINDOW: Final = 2**31 - 1

OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, CLOSE = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x18
SASL_INIT, SASL_OUTCOME = 0x41, 0x44
SOURCE, TARGET, MODIFIED = 0x28, 0x29, 0x27
ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES = 0x72, 0x73, 0x74
CONTENT_TYPE_AND_ENCODING: Final = slice(6, 8)  # of the properties
SHORT_STRING: Final = 255  # bytes; the longest short string of AMQP 0-9-1
BODIES: Final = (0x75, 0x76, 0x77)
NULL, TRUE, ZERO, PLAIN = b"\x40", b"\x41", b"\x43", b"\xa3\x05PLAIN"
TEXT, BINARY = b"\xb1", b"\xb0"
EXPONENTS: Final = {0x72: 0xFF << 23, 0x82: 0x7FF << 52}  # all ones: an infinity or not a number


class Unknown(Enum):
    """A value that AMQP 0-9-1 does not have."""

    KIND = "a UUID or a character"
    NUMBER = "a decimal, an infinity or NaN"


class Frame(NamedTuple):
    """A performative. `payload` is a transfer's part of the message."""

    code: int
    fields: list[Any]
    payload: bytes


async def spend_deliveries(settings: Settings, connection: Connection, queue: str, count: int) -> int:
    """Among the first `count` messages of a queue, return those as failed that this node cannot deliver over
    AMQP 0-9-1, until each has reached the delivery limit. The others are requeued in their order. Returns the
    number of failed deliveries. Raises BrokerUnreachable, also if RabbitMQ does not speak AMQP 1.0."""
    try:
        async with asyncio.timeout(TIMEOUT):
            # Since 4.3 RabbitMQ leaves out numbers that AMQP 0-9-1 cannot hold.
            version = tuple(
                int(part) for part in connection.server_version.split(".")[:2] if part.isdecimal()
            )
            kinds = {Unknown.KIND} if version >= (4, 3) else {*Unknown}
            return await _spend(settings, connection.url, queue, count, kinds)
    except (OSError, EOFError, TimeoutError, struct.error, LookupError, TypeError, ValueError) as error:
        raise BrokerUnreachable(f"AMQP 1.0 to {queue}: {type(error).__name__}") from None


async def _spend(settings: Settings, url: URL, queue: str, count: int, kinds: set[Unknown]) -> int:
    reader, writer = await asyncio.open_connection(url.host, port_of(url), ssl=tls_context(settings, url))
    try:
        await _shake_hands(reader, writer, b"AMQP\x03\x01\x00\x00")
        await _frame(reader)
        login = f"\0{url.user or 'guest'}\0{url.password or 'guest'}"
        writer.write(frame(SASL_INIT, PLAIN, sized(login, BINARY), kind=1))
        if (await _next(reader, SASL_OUTCOME)).fields[0] != 0:
            raise BrokerUnreachable("AMQP 1.0: user name or password refused")
        await _shake_hands(reader, writer, b"AMQP\x00\x01\x00\x00")
        writer.write(frame(OPEN, sized("ott-worker undeliverable"), sized(f"vhost:{vhost_of(url)}")))
        writer.write(frame(BEGIN, NULL, ZERO, uint(WINDOW), uint(WINDOW)))
        source = described(SOURCE, sized(f"/queues/{queue}"))
        writer.write(frame(ATTACH, sized("link"), ZERO, TRUE, NULL, NULL, source, described(TARGET)))
        begun = (await _next(reader, BEGIN)).fields[1]
        attached = (await _next(reader, ATTACH)).fields[9]
        return await _return_as_failed(reader, writer, begun, attached, count, kinds)
    finally:
        writer.close()


async def _return_as_failed(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    transfers: int,
    deliveries: int,
    count: int,
    kinds: set[Unknown],
) -> int:
    """`transfers` and `deliveries` are what the peer has counted so far."""
    returned, credit, clock = 0, count, asyncio.get_running_loop().time
    until = clock() + QUIET_AFTER
    while True:
        window = (uint(transfers), uint(WINDOW), ZERO, uint(WINDOW))
        writer.write(frame(FLOW, *window, ZERO, uint(deliveries), uint(credit)))
        try:
            async with asyncio.timeout_at(until):
                part = await _next(reader, TRANSFER)
        except TimeoutError:
            break
        delivery, message, transfers = part.fields[1], part.payload, transfers + 1
        while len(part.fields) > 5 and part.fields[5] is True:
            part = await _next(reader, TRANSFER)
            message, transfers = message + part.payload, transfers + 1
        deliveries += 1
        if await asyncio.to_thread(_is_undeliverable, message, kinds):
            writer.write(frame(DISPOSITION, TRUE, uint(delivery), NULL, TRUE, described(MODIFIED, TRUE)))
            returned, until = returned + 1, clock() + QUIET_AFTER
        else:
            credit -= 1
    writer.write(frame(CLOSE))
    await _next(reader, CLOSE)  # then the others are requeued
    return returned


def _is_undeliverable(message: bytes, kinds: set[Unknown]) -> bool:
    """Whether a value of these kinds is in a message's annotations or application properties, or its content
    type or encoding is too long."""
    at = 0
    try:
        while (kind := message[at + 2]) not in BODIES:
            section, at = _value(message, at)
            if kind in (ANNOTATIONS, APPLICATION_PROPERTIES) and _is_in(section, kinds):
                return True
            if kind == PROPERTIES and any(
                isinstance(value, bytes) and len(value) > SHORT_STRING
                for value in section[CONTENT_TYPE_AND_ENCODING]
            ):
                return True
    except (IndexError, RecursionError, TypeError, ValueError):
        pass  # it is not an AMQP 1.0 message
    return False


def _is_in(value: Any, kinds: set[Unknown]) -> bool:
    return any(_is_in(item, kinds) for item in value) if isinstance(value, list) else value in kinds


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, header: bytes) -> None:
    writer.write(header)
    if await reader.readexactly(8) != header:
        raise BrokerUnreachable("RabbitMQ does not speak AMQP 1.0")


async def _next(reader: asyncio.StreamReader, code: int) -> Frame:
    """The next frame of this kind."""
    while True:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            came = await _frame(reader)
        if came.code == code:
            return came
        if came.code == CLOSE:
            raise BrokerUnreachable("AMQP 1.0: RabbitMQ closes the connection")


async def _frame(reader: asyncio.StreamReader) -> Frame:
    size, offset = struct.unpack(">IB3x", await reader.readexactly(8))
    content = (await reader.readexactly(size - 8))[offset * 4 - 8 :]
    if not content:  # a heartbeat
        return Frame(0, [], b"")
    fields, end = _value(content, 3)
    return Frame(content[2], fields, content[end:])


def _value(data: bytes, at: int) -> tuple[Any, int]:
    """The value at this offset, and the offset where it ends. Numbers are read as unsigned, maps and arrays
    as lists, and strings as bytes."""
    return _content(data[at], data, at + 1)


def _content(code: int, data: bytes, at: int) -> tuple[Any, int]:
    kind = code >> 4
    if kind == 0:  # described: the descriptor comes first
        _, at = _value(data, at)
        return _value(data, at)
    if kind == 4:
        return {0x40: None, 0x41: True, 0x42: False, 0x45: []}.get(code, 0), at
    if kind < 10:
        end = at + (1 << (kind - 5))
        return _fixed(code, int.from_bytes(data[at:end])), end
    wide = 4 if kind % 2 else 1
    start = at + wide
    end = start + int.from_bytes(data[at:start])
    if kind < 12:
        return data[start:end], end
    items, at = [], start + wide
    count = int.from_bytes(data[start:at])
    if kind < 14:
        for _ in range(count):
            item, at = _value(data, at)
            items.append(item)
    elif count and (code := data[at]) >> 4 != 4:  # an array: one type for all values, none of them empty
        at += 1
        while at < min(end, len(data)) and len(items) < count:
            item, at = _content(code, data, at)
            items.append(item)
    return items, end


def _fixed(code: int, number: int) -> int | Unknown:
    if code in (0x73, 0x98):
        return Unknown.KIND
    if code in (0x74, 0x84, 0x94) or (code in EXPONENTS and number & EXPONENTS[code] == EXPONENTS[code]):
        return Unknown.NUMBER
    return number


def sized(value: str, code: bytes = TEXT) -> bytes:
    """A string or binary value with its length."""
    encoded = value.encode()
    return code + struct.pack(">I", len(encoded)) + encoded


def uint(value: int) -> bytes:
    return b"\x70" + struct.pack(">I", value % 2**32)


def described(code: int, *fields: bytes) -> bytes:
    """A list preceded by its descriptor."""
    content = b"".join(fields)
    head = struct.pack(">II", len(content) + 4, len(fields))
    return b"\x00\x53" + bytes((code,)) + b"\xd0" + head + content


def frame(code: int, *fields: bytes, kind: int = 0) -> bytes:
    """A frame on channel 0."""
    content = described(code, *fields)
    return struct.pack(">IBBH", len(content) + 8, 2, kind, 0) + content
