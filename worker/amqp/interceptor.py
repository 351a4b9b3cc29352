"""Takes the frames of messages and confirms from one channel, and assembles the messages."""

from collections.abc import Callable

from worker.amqp import frames
from worker.amqp.properties import Properties

OnContent = Callable[[bytes, Properties, bytes, int], None]
OnConfirm = Callable[[int, bool, bool], None]
KeepsBody = Callable[[int], bool]


class FrameInterceptor:
    """One channel's interceptor.

    `on_content(method, properties, body, dropped)` gets each Basic.Deliver and Basic.Return with its content,
    `on_confirm(tag, multiple, taken)` each Basic.Ack and, with `taken` False, each Basic.Nack.
    `keeps_body(size)` is asked before a body arrives. One that it declines is dropped frame by frame: `body`
    is empty then, and `dropped` is its size. `is_open` is False once the broker has closed the channel: to
    write on it then ends the connection.
    """

    def __init__(
        self,
        channel: int,
        on_content: OnContent,
        on_confirm: OnConfirm | None = None,
        keeps_body: KeepsBody | None = None,
    ) -> None:
        self.channel = channel
        self._on_content = on_content
        self._on_confirm = on_confirm
        self._keeps_body = keeps_body
        self._method: bytes | None = None
        self._properties = Properties()
        self._body: list[bytes] = []
        self._missing = 0
        self._dropped = 0
        self.is_open = True

    def intercept(self, kind: int, payload: bytes) -> bool:
        """Take one frame of the channel; False leaves it to the client library."""
        if kind == frames.METHOD:
            return self._intercept_method(payload)
        if self._method is None:
            return False
        if kind == frames.HEADER:
            size = self._missing = frames.body_size(payload)
            self._properties = Properties.parse(payload[12:])
            keeps = self._keeps_body is None or self._keeps_body(size)
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
        if self._on_confirm is None or method not in (frames.ACK, frames.NACK):
            self.is_open = self.is_open and method != frames.CHANNEL_CLOSE
            return False
        tag, multiple = frames.confirm(payload)
        self._on_confirm(tag, multiple, method == frames.ACK)
        return True

    def _complete(self, method: bytes) -> None:
        parts, self._body, self._method = self._body, [], None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._on_content(method, self._properties, body, self._dropped)
