"""The connection's transport: frames are split where they arrive, before aiormq reads them.

aiormq passes each frame through two queues, creates a task for each delivery, and ends the connection if it
cannot decode a property. So on intercepted channels the frames of messages (deliveries, confirms, returns) go
to the interceptor of their channel, at once and in order. All others go to aiormq, without what it cannot
decode. aiormq's `transport_factory` lets us supply the stream."""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, SupportsIndex

from aiormq.connection import TransportFactory
from yarl import URL

from worker.amqp import frames
from worker.amqp.properties import Properties

ALIVE_INTERVAL: Final = 0.5  # seconds; aiormq expects a frame within 3 * (heartbeat + 1)
_ALIVE = frames.frame(frames.HEARTBEAT, 0, b"")
LARGEST_BODY: Final = 262_144  # bytes; aiormq gets a larger message without its body
_KINDS = frozenset({frames.METHOD, frames.HEADER, frames.BODY, frames.HEARTBEAT})


OnContent = Callable[[bytes, Properties, bytes, int], None]
OnConfirm = Callable[[int, bool, bool], None]
KeepsBody = Callable[[int], bool]


class ProtocolViolation(ConnectionError):
    """The peer sent something other than AMQP 0-9-1, or a frame beyond the agreed size."""


@dataclass(slots=True)
class FrameInterceptor:
    """One channel's interceptor.

    `on_content(method, properties, body, dropped)` gets each Basic.Deliver and Basic.Return with its content,
    `on_confirm(tag, multiple, accepted)` each Basic.Ack and, with `accepted` False, each Basic.Nack.
    `keeps_body(size)` is called before a body arrives. If it returns False, the body is dropped frame by
    frame: `body` is empty then, and `dropped` is its size. `is_open` is False once the broker has closed the
    channel: writing on it then ends the connection."""

    channel: int
    on_content: OnContent
    on_confirm: OnConfirm | None = None
    keeps_body: KeepsBody | None = None
    is_open: bool = True
    _method: bytes | None = None
    _properties: Properties = field(default_factory=Properties)
    _body: list[bytes] = field(default_factory=list)
    _missing: int = 0
    _dropped: int = 0

    def intercept(self, kind: int, payload: bytes) -> bool:
        """Process one frame of the channel; False leaves it to the client library."""
        if kind == frames.METHOD:
            return self._intercept_method(payload)
        if self._method is None:
            return False
        if kind == frames.HEADER:
            size = self._missing = frames.body_size(payload)
            self._properties = Properties.parse(payload[12:])
            keeps = self.keeps_body is None or self.keeps_body(size)
            self._dropped = 0 if keeps else size
        else:
            self._missing -= len(payload)
            if not self._dropped:
                self._body.append(payload)
        if self._missing <= 0:
            self._complete(self._method)
        return True

    def _intercept_method(self, payload: bytes) -> bool:
        method = payload[:4]
        if method in (frames.DELIVER, frames.RETURN):
            self._method = payload
            return True
        if self.on_confirm is None or method not in (frames.ACK, frames.NACK):
            self.is_open = self.is_open and method != frames.CHANNEL_CLOSE
            return False
        tag, multiple = frames.confirm(payload)
        self.on_confirm(tag, multiple, method == frames.ACK)
        return True

    def _complete(self, method: bytes) -> None:
        parts, self._body, self._method = self._body, [], None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.on_content(method, self._properties, body, self._dropped)


class InterceptingTransport(asyncio.StreamReader, TransportFactory):
    """Opens the socket for one aiormq connection, to one address, and is the stream that aiormq reads. Only
    the TLS context and the host name in the URL decide which peer it trusts.

    It passes the frames of intercepted channels on as they arrive, and keeps the others for aiormq. An
    incomplete frame has its own buffer, so that it is not copied again with each part."""

    def __init__(self, address: str, port: int, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._address = address
        self._port = port
        self._tls = tls
        self._clock = loop.time
        self._socket: asyncio.Transport | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._partial = bytearray()
        self._missing = 0  # bytes until the frame in `_partial` is complete
        self._alive_at = 0.0
        self._has_failed = False
        self._without_body: set[int] = set()  # channels
        self.interceptors: dict[int, FrameInterceptor] = {}  # by channel
        self.is_blocked = False  # by a memory or disk alarm of the broker, which does not read meanwhile
        # Reply code and text of the broker's Connection.Close. aiormq loses those of a refused connection.
        self.close_reason: tuple[int, str] | None = None
        self.heard_at = loop.time()  # loop time at which bytes last arrived

    @property
    def is_used(self) -> bool:
        """Whether the client library opened its connection through this."""
        return self._writer is not None

    async def drain(self) -> None:
        """Wait until most of what was written is sent, or the stream has ended."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    def write(self, frames: bytes) -> None:
        """Write whole frames now, ahead of what aiormq has queued. Does nothing if the stream is closing."""
        if self._socket is not None and not self._socket.is_closing():
            self._socket.write(frames)

    def pause_reading(self) -> None:
        """Stop reading, so that arriving frames do not fill the memory. The broker drops a client that does
        not read for 15 s."""
        if self._socket is not None and not self._socket.is_closing():
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.resume_reading()

    def abort(self) -> None:
        """End the stream at once."""
        if self._socket is not None:
            self._socket.abort()

    async def create(self, url: URL, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self, loop=loop)
        self._socket, _protocol = await loop.create_connection(
            lambda: protocol,
            self._address,
            self._port,
            ssl=self._tls,
            server_hostname=url.host if self._tls else None,
        )
        self._writer = asyncio.StreamWriter(self._socket, protocol, self, loop)
        return self, self._writer

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        received = bytes(data)  # no copy: it is bytes already
        self.heard_at = self._clock()
        if self._has_failed:
            return
        if len(received) < self._missing:
            self._partial += received
            self._missing -= len(received)
            return
        if self._partial:
            received = b"".join((self._partial, received))
            self._partial = bytearray()
        try:
            passed = self._split(received)
        except (struct.error, IndexError):
            self._fail("a malformed frame")
        except ProtocolViolation as error:
            self._fail(str(error))
        else:
            if passed:
                super().feed_data(passed)

    def _split(self, buffer: bytes) -> bytes:
        """Intercept the complete frames in `buffer`, keep the rest, and return the frames for aiormq."""
        interceptors, passed, intercepted = self.interceptors, [], False
        self._missing = 0
        at, size = 0, len(buffer)
        while at < size:
            if buffer[at] not in _KINDS:
                raise ProtocolViolation(_foreign(buffer[at : at + 5]))
            if size - at < frames.OVERHEAD:
                break
            kind, channel, length = frames.HEAD.unpack_from(buffer, at)
            if length > frames.LARGEST:
                raise ProtocolViolation("a frame larger than agreed")
            end = at + 7 + length
            if end >= size:
                self._missing = end + 1 - size
                break
            if buffer[end] != frames.END:
                raise ProtocolViolation("a frame without its end")
            payload = buffer[at + 7 : end]
            interceptor = interceptors.get(channel)
            if interceptor is not None and interceptor.intercept(kind, payload):
                intercepted = True
            else:
                passed.append(self._for_the_client(kind, channel, payload))
            at = end + 1
        self._partial += buffer[at:]
        if intercepted and not passed and self.heard_at - self._alive_at > ALIVE_INTERVAL:
            # aiormq drops a connection on which it sees no frames.
            self._alive_at = self.heard_at
            passed.append(_ALIVE)
        return b"".join(passed)

    def _for_the_client(self, kind: int, channel: int, payload: bytes) -> bytes:
        """The frame, without what aiormq cannot decode."""
        if kind == frames.METHOD:
            if channel == 0:
                payload = self._on_connection_method(payload)
            else:
                payload = frames.with_readable_key(payload)
        elif kind == frames.HEADER:
            size = frames.body_size(payload)
            self._without_body.discard(channel)
            if size > LARGEST_BODY:
                self._without_body.add(channel)
                size = 0
            payload = frames.content_head(size) + Properties.parse(payload[12:]).plain().encoded()
        elif kind == frames.BODY and channel in self._without_body:
            return b""
        return frames.frame(kind, channel, payload)

    def _on_connection_method(self, payload: bytes) -> bytes:
        method = payload[:4]
        if method == frames.TUNE:
            return frames.with_frame_max(payload, frames.LARGEST)
        if method == frames.CONNECTION_CLOSE:
            self.close_reason = frames.close_reason(payload)
        if method in (frames.BLOCKED, frames.UNBLOCKED):
            self.is_blocked = method == frames.BLOCKED
        return payload

    def _fail(self, why: str) -> None:
        self._has_failed = True
        self.set_exception(ProtocolViolation(why))


def _foreign(head: bytes) -> str:
    """Which protocol the peer speaks instead, by its first bytes."""
    if head.startswith(b"HTTP/"):
        return "an HTTP server answers on this port (AMQP usually uses 5672 or 5671)"
    if head[0] in (0x15, 0x16):
        return "the server speaks TLS on this port (begin OTT_AMQP_URL with amqps)"
    if head.startswith(b"AMQP"):
        return "the server speaks another version of AMQP"
    return "the server does not speak AMQP"
