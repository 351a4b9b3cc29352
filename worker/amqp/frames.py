"""The frames of messages and confirms, which we read and write without the client library. Layouts: AMQP
0-9-1 §4.2, and the methods of class 60."""

import struct
from functools import lru_cache
from typing import Final

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
END: Final = 0xCE
OVERHEAD: Final = 8  # bytes of a frame around its payload
LARGEST: Final = 131_072  # bytes of a frame; RabbitMQ's default. A broker may lower it

TUNE = struct.pack(">HH", 10, 30)
CONNECTION_CLOSE = struct.pack(">HH", 10, 50)
BLOCKED, UNBLOCKED = (struct.pack(">HH", 10, method) for method in (60, 61))
CHANNEL_CLOSE = struct.pack(">HH", 20, 40)
PUBLISH, RETURN, DELIVER, GET_OK, ACK, REJECT, NACK = (
    struct.pack(">HH", 60, method) for method in (40, 50, 60, 71, 80, 90, 120)
)

HEAD: Final = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQ")
_BODY_SIZE = struct.Struct(">4xQ")
_CONFIRM = struct.Struct(">4xQB")
_SETTLEMENT = struct.Struct(">BHI4sQBB")
_DELIVERED = struct.Struct(">QB")
_FRAME_MAX = struct.Struct(">6xI")


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return b"%b%b\xce" % (HEAD.pack(kind, channel, len(payload)), payload)


def content_head(size: int) -> bytes:
    """A content header up to its properties, for a body of `size` bytes."""
    return _CONTENT.pack(60, 0, size)


def body_size(header: bytes) -> int:
    """The size of the body that a content header announces."""
    (size,) = _BODY_SIZE.unpack_from(header)
    return int(size)


def ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """The frame of a Basic.Ack."""
    return _SETTLEMENT.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def reject(channel: int, tag: int) -> bytes:
    """The frame of a Basic.Reject that does not requeue: the broker dead-letters the message."""
    return _SETTLEMENT.pack(METHOD, channel, 13, REJECT, tag, False, END)


def confirm(method: bytes) -> tuple[int, bool]:
    """Delivery tag and `multiple` of a Basic.Ack or Basic.Nack."""
    tag, bits = _CONFIRM.unpack_from(method)
    return tag, bits & 1 == 1


def delivered(method: bytes) -> tuple[int, bool]:
    """Delivery tag and redelivered flag of a Basic.Deliver."""
    tag, redelivered = _DELIVERED.unpack_from(method, 5 + method[4])
    return tag, redelivered != 0


def route(method: bytes) -> tuple[str, str]:
    """Exchange and routing key of a Basic.Deliver."""
    return _route(method[14 + method[4] :])


@lru_cache(maxsize=1000)
def _route(names: bytes) -> tuple[str, str]:
    size = names[0]
    exchange, key = names[1 : 1 + size], names[2 + size :]
    return exchange.decode("utf-8", "replace"), key.decode("utf-8", "replace")


def with_readable_key(method: bytes) -> bytes:
    """The method, with question marks for bytes of the routing key that are not UTF-8. A publisher chooses
    the key, and pamqp ends the connection if it cannot decode it."""
    kind = method[:4]
    if kind == DELIVER:
        at = 14 + method[4]
    elif kind in (GET_OK, RETURN):
        at = 13 if kind == GET_OK else 7 + method[6]
    else:
        return method
    at += 1 + method[at]  # after the exchange's name
    end = at + 1 + method[at]
    key = method[at + 1 : end].decode("utf-8", "surrogateescape").encode("utf-8", "replace")
    return method[: at + 1] + key + method[end:]


def close_reason(method: bytes) -> tuple[int, str]:
    """Reply code and text of a Connection.Close."""
    size = method[6]
    return int.from_bytes(method[4:6], "big"), method[7 : 7 + size].decode("utf-8", "replace")


def with_frame_max(tune: bytes, largest: int) -> bytes:
    """The Connection.Tune, with frames no larger than `largest`. A frame-max of 0 means no limit."""
    (frame_max,) = _FRAME_MAX.unpack_from(tune)
    if 0 < frame_max <= largest:
        return tune
    return tune[:6] + struct.pack(">I", largest) + tune[10:]
