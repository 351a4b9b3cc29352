"""Listens to AMQP between worker and broker: which request is acknowledged, and whether that was too early.

It reads the frames that pass the proxy, with a parser that the worker does not share.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pamqp import commands, frame, header

from tests.faults.proxy import Wire
from worker.contract.words import BARRIER_TYPE, EPOCH_HEADER

T = TypeVar("T")

PROTOCOL_HEADER = 8  # bytes, before a client's first frame
FRAME_HEADER = struct.Struct(">BHI")
METHOD, CONTENT_HEADER = 1, 2


class Wiretap:
    """All connections of the workers with this prefix."""

    def __init__(self, prefix: str) -> None:
        self.too_early: list[str] = []  # acknowledged before the broker had confirmed what they ask for
        self._published: set[tuple[str, str]] = set()
        self._confirmed: set[tuple[str, str]] = set()
        self._epochs: dict[str, int] = {}  # of the newest barrier that came out of each partition
        self._prefix = prefix
        self._connections: list[_Connection] = []

    @property
    def unsettled(self) -> int:
        """Deliveries without an acknowledgement, on connections that stand."""
        return sum(len(channel.delivered) for c in self._connections for channel in c.channels.values())

    def wire(self) -> Wire:
        """The listeners for a new connection."""
        connection = _Connection(self)
        self._connections.append(connection)
        said, heard = _Frames(connection.said, skip=PROTOCOL_HEADER), _Frames(connection.heard)
        return said.feed, heard.feed, lambda: self._connections.remove(connection)

    def kind(self, method: commands.Basic.Publish | commands.Basic.Deliver | commands.Basic.Return) -> str:
        """What the message is that this method brings; "reply" stands for requests as well, "routed" for
        those in a partition, "journal" for all streams."""
        if method.exchange == f"{self._prefix}.dead":
            return "dead"
        streams = ("journal", "status", "control", "partitions")
        if method.routing_key in (f"{self._prefix}.{stream}" for stream in streams) or (
            method.exchange == self._prefix and method.routing_key == "control"
        ):
            return "journal"
        return "routed" if method.routing_key.startswith(f"{self._prefix}.requests.") else "reply"

    def delivered(self, method: commands.Basic.Deliver, properties: Any) -> str | None:
        """As `kind`; None for what is no request, and "late" for what a router has put behind the barrier of
        its successor: it is acknowledged without a reply, because the successor gets it too."""
        kind, queue = self.kind(method), method.routing_key
        epoch = (properties.headers or {}).get(EPOCH_HEADER, 0)
        if properties.message_type == BARRIER_TYPE:
            self._epochs[queue] = max(self._epochs.get(queue, 0), epoch)
            return None
        if kind == "routed" and epoch < self._epochs.get(queue, 0):
            return "late"
        return None if kind == "journal" else kind

    def published(self, kind: str, request_id: str) -> None:
        self._published.add((kind, request_id))

    def confirmed(self, kind: str, request_id: str) -> None:
        self._confirmed.add((kind, request_id))

    def acknowledged(self, kind: str, request_id: str) -> None:
        """A reply must have been confirmed by now, and the dead letter where there is one; or the partition
        must have confirmed it."""
        if kind == "late" or (kind == "reply" and ("routed", request_id) in self._confirmed):
            return
        letter = ("dead", request_id)
        unsafe = letter in self._published and letter not in self._confirmed
        if unsafe or ("reply", request_id) not in self._confirmed:
            self.too_early.append(request_id)


@dataclass
class _Channel:
    delivered: dict[int, tuple[str, str]] = field(default_factory=dict)  # delivery tag to kind and request
    published: dict[int, tuple[str, str]] = field(default_factory=dict)  # publish number to kind and request
    returned: Counter[tuple[str, str]] = field(default_factory=Counter)
    publishes: int = 0
    said: Any = None  # the method whose content follows
    heard: Any = None


class _Connection:
    def __init__(self, tap: Wiretap) -> None:
        self.channels: dict[int, _Channel] = {}
        self._tap = tap

    def said(self, number: int, part: Any) -> None:
        """By the worker."""
        channel = self.channels.setdefault(number, _Channel())
        if isinstance(part, commands.Basic.Publish):
            channel.said = part
        elif isinstance(part, header.ContentHeader):
            kind = self._tap.kind(channel.said)
            channel.publishes += 1
            channel.published[channel.publishes] = (kind, _request(part, kind))
            self._tap.published(*channel.published[channel.publishes])
        elif isinstance(part, commands.Basic.Ack):
            for kind, request_id in _take(channel.delivered, part.delivery_tag, part.multiple):
                self._tap.acknowledged(kind, request_id)
        elif isinstance(part, commands.Basic.Nack | commands.Basic.Reject):
            _take(channel.delivered, part.delivery_tag, getattr(part, "multiple", False))
        elif isinstance(part, commands.Channel.CloseOk):
            self.channels.pop(number)

    def heard(self, number: int, part: Any) -> None:
        """By the worker, from the broker."""
        channel = self.channels.setdefault(number, _Channel())
        if isinstance(part, commands.Basic.Deliver | commands.Basic.Return):
            channel.heard = part
        elif isinstance(part, header.ContentHeader):
            if isinstance(channel.heard, commands.Basic.Deliver):
                kind = self._tap.delivered(channel.heard, part.properties)
                if kind is not None:
                    channel.delivered[channel.heard.delivery_tag] = (kind, _request(part, "request"))
            else:
                kind = self._tap.kind(channel.heard)
                channel.returned[kind, _request(part, kind)] += 1
        elif isinstance(part, commands.Basic.Ack):
            for kind, request_id in _take(channel.published, part.delivery_tag, part.multiple):
                if channel.returned[kind, request_id]:
                    channel.returned[kind, request_id] -= 1
                else:
                    self._tap.confirmed(kind, request_id)
        elif isinstance(part, commands.Basic.Nack):
            _take(channel.published, part.delivery_tag, part.multiple)
        elif isinstance(part, commands.Channel.CloseOk):
            self.channels.pop(number)


class _Frames:
    """Cuts a stream of bytes into frames, and tells of methods and content headers."""

    def __init__(self, tell: Callable[[int, Any], None], skip: int = 0) -> None:
        self._tell = tell
        self._skip = skip
        self._rest = b""

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        at = self._skip
        while at + FRAME_HEADER.size <= len(data):
            kind, channel, size = FRAME_HEADER.unpack_from(data, at)
            end = at + FRAME_HEADER.size + size + 1
            if end > len(data):
                break
            if channel and kind in (METHOD, CONTENT_HEADER):
                self._tell(channel, frame.unmarshal(data[at:end])[2])
            at = end
        self._skip = max(0, at - len(data))
        self._rest = data[at:]


def _request(content: header.ContentHeader, kind: str) -> str:
    """The request's id; a reply carries it as its correlation id."""
    properties = content.properties
    return str(properties.correlation_id if kind == "reply" else properties.message_id)


def _take(waiting: dict[int, T], tag: int, multiple: bool) -> list[T]:
    tags = [t for t in waiting if t <= tag] if multiple else [tag]
    return [waiting.pop(t) for t in tags if t in waiting]
