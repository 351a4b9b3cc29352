"""Frames as they arrive, taken apart many at a time.

aiormq passes each frame through two queues and makes a task for each delivery. What comes for every message
(deliveries, confirms, returns) is therefore handed over here, at once and in order; all else goes on to
aiormq. Layouts: AMQP 0-9-1 §4.2 and the methods of class 60.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import aiormq.exceptions
import pamqp.exceptions
import pamqp.frame
import pamqp.header
import pamqp.heartbeat

from worker.amqp.properties import MalformedProperties, Properties

CHUNK = 262_144  # bytes of one read, at most
METHOD, HEADER, BODY = 1, 2, 3
END = 0xCE
CHANNEL_CLOSE = struct.pack(">HH", 20, 40)
PUBLISH, RETURN, DELIVER, ACK, NACK = (struct.pack(">HH", 60, method) for method in (40, 50, 60, 80, 120))

_HEAD = struct.Struct(">BHI")
_CONFIRM = struct.Struct(">4xQB")
_CONTENT_HEAD = struct.Struct(">HHQ")
_CONTENT = struct.Struct(">4xQ")
_ACK = struct.Struct(">BHI4sQBB")
_DELIVERED = struct.Struct(">QB")

_ALIVE = (8, 0, pamqp.heartbeat.Heartbeat())

OnContent = Callable[[bytes, Properties, bytes], None]
OnConfirm = Callable[[int, bool, bool], None]
Frame = tuple[int, int, Any]


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame as it travels."""
    return b"%b%b\xce" % (_HEAD.pack(kind, channel, len(payload)), payload)


def content_head(size: int) -> bytes:
    """A content header up to its properties, for a body of `size` bytes."""
    return _CONTENT_HEAD.pack(60, 0, size)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """The frame of a Basic.Ack."""
    return _ACK.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def delivered(method: bytes) -> tuple[int, bool]:
    """Delivery tag and redelivered flag of a Basic.Deliver."""
    tag, redelivered = _DELIVERED.unpack_from(method, 5 + method[4])
    return tag, redelivered != 0


class FrameInterceptor:
    """Takes what concerns messages from one channel.

    `on_content(method, properties, body)` gets each Basic.Deliver and Basic.Return with its content,
    `on_confirm(tag, multiple, taken)` each Basic.Ack and, with `taken` False, each Basic.Nack. `is_open` is
    False once the broker has closed the channel: what is written on it then ends the connection.
    """

    __slots__ = ("_body", "_method", "_missing", "_on_confirm", "_on_content", "_properties", "is_open")

    def __init__(self, on_content: OnContent, on_confirm: OnConfirm | None) -> None:
        self._on_content = on_content
        self._on_confirm = on_confirm
        self._method: bytes | None = None
        self._properties = Properties()
        self._body: list[bytes] = []
        self._missing = 0
        self.is_open = True

    def take(self, kind: int, payload: bytes) -> bool:
        """Take one frame of the channel; False where it is aiormq's."""
        if kind == METHOD:
            return self._take_method(payload)
        if self._method is None:
            return False
        if kind == HEADER:
            (self._missing,) = _CONTENT.unpack_from(payload)
            self._properties = Properties.parse(payload[12:])
        else:
            self._body.append(payload)
            self._missing -= len(payload)
        if self._missing <= 0:
            self._complete(self._method)
        return True

    def _take_method(self, payload: bytes) -> bool:
        method = payload[:4]
        if method in (DELIVER, RETURN):
            self._method = payload
            return True
        if self._on_confirm is None or method not in (ACK, NACK):
            self.is_open = self.is_open and method != CHANNEL_CLOSE
            return False
        tag, bits = _CONFIRM.unpack_from(payload)
        self._on_confirm(tag, bits & 1 == 1, method == ACK)
        return True

    def _complete(self, method: bytes) -> None:
        parts, self._body, self._method = self._body, [], None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._on_content(method, self._properties, body)


class _ContentHeader(pamqp.header.ContentHeader):
    """A content header whose properties stay as they travelled."""

    def unmarshal(self, data: bytes) -> None:
        (self.body_size,) = _CONTENT.unpack_from(data)
        self.properties = Properties.parse(data[12:])  # type: ignore[assignment]


class FrameReceiver:
    """What aiormq's reading loop iterates over. One message's malformed property does not end the
    connection, as it would in aiormq's own."""

    def __init__(self, reader: asyncio.StreamReader, taps: dict[int, FrameInterceptor]) -> None:
        self._reader = reader
        self._taps = taps
        self._buffer = b""
        self._at = 0

    def __aiter__(self) -> "FrameReceiver":
        return self

    async def __anext__(self) -> Frame:
        while True:
            try:
                received = self._next()
                if received is not None:
                    return received
                data = await self._reader.read(CHUNK)
            except (MalformedProperties, struct.error, pamqp.exceptions.PAMQPException) as error:
                raise aiormq.exceptions.InvalidFrameError(str(error)) from error
            except OSError as error:
                raise aiormq.exceptions.AMQPConnectionError("the connection ended") from error
            if not data:
                raise aiormq.exceptions.AMQPConnectionError("the connection ended")
            self._buffer = self._buffer[self._at :] + data
            self._at = 0

    def _next(self) -> Frame | None:
        """The next frame for aiormq, None where no whole one is left. What taps took is told as a
        heartbeat, for aiormq gives up a connection on which it sees no frames."""
        taken = False
        while (payload := self._whole()) is not None:
            kind, channel, content = payload
            tap = self._taps.get(channel)
            if tap is not None and tap.take(kind, content):
                taken = True
            else:
                return _decoded(kind, channel, content)
        return _ALIVE if taken else None

    def _whole(self) -> tuple[int, int, bytes] | None:
        buffer, start = self._buffer, self._at + 7
        if start > len(buffer):
            return None
        kind, channel, size = _HEAD.unpack_from(buffer, self._at)
        end = start + size
        if end >= len(buffer):
            return None
        if buffer[end] != END:
            raise pamqp.exceptions.UnmarshalingException("frame", "no frame end")
        self._at = end + 1
        return kind, channel, buffer[start:end]


def _decoded(kind: int, channel: int, payload: bytes) -> Frame:
    if kind == HEADER:
        header = _ContentHeader()
        header.unmarshal(payload)
        return len(payload) + 8, channel, header
    return pamqp.frame.unmarshal(frame(kind, channel, payload))
