"""One channel in confirm mode: it publishes, takes in the confirms, and publishes again what was not
confirmed.

When the broker forbids a publish or cannot take it, it closes the channel without saying which publish it
was, and drops all that were on their way. So every publish is kept here until it is confirmed, and goes first
on the next channel.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count
from typing import Final
from uuid import uuid4

import aiormq.exceptions
from aiormq.channel import Channel

from worker.amqp import frames
from worker.amqp.connection import Connection, close_channel
from worker.amqp.direct_reply import is_direct_reply
from worker.amqp.interceptor import FrameInterceptor
from worker.amqp.properties import Properties, short_string
from worker.backoff import ceiling
from worker.errors import BrokerUnreachable, PublishRefused, QueueFull, Unroutable, WorkerError
from worker.events import EventListener

CONFIRM_TIMEOUT: Final = 30.0  # seconds; then what happened is unknown, and it is published again
# When a stream's leader dies and a record comes before the broker has noted the new leader everywhere, its
# channel goes back to the dead one, until the next record. Records that are published twice do no harm. The
# time-out doubles with each attempt, so that a slow broker can keep up.
STREAM_CONFIRM_TIMEOUT: Final = 3.0  # seconds
GIVE_UP_AFTER: Final = 2  # overdue confirms of one message to a queue that somebody else named
SWEEP_INTERVAL: Final = 1.0  # seconds between checks for overdue confirms
RETRY: Final = (0.1, 5.0)  # seconds; first and longest wait before publishing again what was turned down
STUCK_AFTER: Final = 6  # refusals in a row of one message, about 6 s
ALONE_AFTER: Final = 2  # channels that the broker closed with a message unconfirmed on them
RENEW_INTERVAL: Final = 10.0  # seconds; what is unconfirmed on a channel that closes is published twice
REFUSED_FOR: Final = 60.0  # seconds before a forbidden exchange is tried again
WRITE_BYTES: Final = 1_048_576  # bytes in one write; the next one waits until most are sent
PUBLISH_HEADER: Final = "x-ott-publish"  # tells apart pending publishes of one message id


@dataclass(slots=True, eq=False)
class Message:
    """One message to publish. Without a `message_id` of its own it gets a fresh one."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    external: bool = False  # to a queue that somebody else named: may end in Unroutable or PublishRefused


@dataclass(slots=True, eq=False)
class _PendingPublish:
    message: Message
    future: "asyncio.Future[None]"
    key: str = ""  # by which a returned message is recognized
    sent_at: float = 0.0
    refusals: int = 0
    channel_losses: int = 0
    overdue: int = 0


@dataclass(eq=False)
class ConfirmChannel:
    """One channel in confirm mode, opened again whenever it closes. It holds the publishes that are not
    confirmed. `missing` is set when one of our own broker objects does not exist.

    With `publishes_again=False` it is opened once. A publish whose confirm does not come, or that is on its
    way when the channel closes, ends in BrokerUnreachable: whether the broker took it is unknown."""

    name: str
    events: EventListener
    missing: asyncio.Event = field(default_factory=asyncio.Event)
    is_for_stream: bool = False
    publishes_again: bool = True
    confirmed_at: float = 0.0
    _connection: Connection | None = None
    _interceptor: FrameInterceptor | None = None
    _number: int = 0
    _frame_max: int = 131072
    _tag: int = 0
    _outbox: deque[_PendingPublish] = field(default_factory=deque)
    _sent: dict[int, _PendingPublish] = field(default_factory=dict)
    _tags: dict[str, int] = field(default_factory=dict)
    _later: set[_PendingPublish] = field(default_factory=set)
    _flushing: bool = False
    _refused_until: float = 0.0
    _renew_at: float = 0.0
    _draining: set["asyncio.Task[None]"] = field(default_factory=set)
    _stuck: bool = False

    def __len__(self) -> int:
        return len(self._outbox) + len(self._sent) + len(self._later)

    @property
    def is_open(self) -> bool:
        return self._interceptor is not None and self._interceptor.is_open

    def send(self, message: Message) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        if not len(self):
            self.confirmed_at = loop.time()  # no publish was waiting for a confirm until now
        pending = _PendingPublish(message, loop.create_future())
        if message.external and loop.time() < self._refused_until:
            pending.future.set_exception(PublishRefused("publishing to other queues is not allowed"))
        else:
            self._queue(pending)
        return pending.future

    def abandon(self) -> None:
        for pending in [*self._outbox, *self._sent.values(), *self._later]:
            pending.future.cancel()
        self._outbox.clear()
        self._sent.clear()
        self._tags.clear()
        self._later.clear()

    async def serve(self, connection: Connection) -> None:
        """Keep a channel open on `connection` and write what is in the outbox, until cancelled."""
        while connection.is_open:
            try:
                channel = await connection.channel(confirms=True)
            except BrokerUnreachable:
                await asyncio.sleep(RETRY[0])
                continue
            closed: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
            channel.closing.add_done_callback(partial(_tell, closed))
            self._open(channel, connection)
            try:
                reason = await self._until_closed(channel, closed)
            finally:
                self._interceptor = None
                self._take_back()
            self._closed(reason)
            if not self.publishes_again:
                return
            await asyncio.sleep(RETRY[0])

    def _open(self, channel: Channel, connection: Connection) -> None:
        self._connection = connection
        self._interceptor = connection.intercept(channel, self._returned, self._answered)
        self._number, self._tag = channel.number, 0
        self._frame_max = connection.frame_max
        self.confirmed_at = asyncio.get_running_loop().time()
        self._flush_soon()

    async def _until_closed(
        self, channel: Channel, closed: "asyncio.Future[BaseException | None]"
    ) -> BaseException | None:
        while True:
            done, _ = await asyncio.wait({closed}, timeout=SWEEP_INTERVAL)
            if done:
                return closed.result()
            self._sweep()
            if self._stuck and asyncio.get_running_loop().time() >= self._renew_at:
                await self._renew(channel, closed)

    async def _renew(self, channel: Channel, closed: "asyncio.Future[BaseException | None]") -> None:
        """Close the channel, for another to be opened. RabbitMQ's channel remembers that a quorum queue was
        full, and goes on refusing when a higher limit has made room (seen on 3.10)."""
        self._renew_at, self._stuck = asyncio.get_running_loop().time() + RENEW_INTERVAL, False
        self._interceptor = None  # to write on a channel that is being closed would end the connection
        await close_channel(channel, SWEEP_INTERVAL)
        await asyncio.wait({closed}, timeout=SWEEP_INTERVAL)
        if not closed.done() and self._connection is not None:
            self._connection.abort()

    def _sweep(self) -> None:
        """Publish again what has waited too long: a half-dead peer may never confirm it."""
        now = asyncio.get_running_loop().time()
        if self._connection is not None and self._connection.is_blocked:
            # The publishes wait in the connection. The broker reads them when its alarm has ended.
            for pending in self._sent.values():
                pending.sent_at = now
            return
        oldest = next(iter(self._sent.values()), None)
        if oldest is None or self._connection is None:
            return
        if self._connection.heard_at < oldest.sent_at <= now - CONFIRM_TIMEOUT:
            # The peer is gone. Without heartbeats nothing else would show it.
            self._connection.abort()
        else:
            self._publish_overdue_again(now)

    def _publish_overdue_again(self, now: float) -> None:
        first = STREAM_CONFIRM_TIMEOUT if self.is_for_stream else CONFIRM_TIMEOUT
        for tag, pending in list(self._sent.items()):
            if pending.sent_at + ceiling(pending.overdue + 1, first, CONFIRM_TIMEOUT) > now:
                break
            del self._sent[tag]
            self._tags.pop(pending.key, None)
            if not self.publishes_again:
                _fail(pending, BrokerUnreachable("RabbitMQ did not confirm in time"))
                continue
            pending.overdue += 1
            if pending.message.external and pending.overdue >= GIVE_UP_AFTER and not pending.future.done():
                pending.future.set_exception(QueueFull("the queue does not confirm"))
            else:
                self._queue(pending)

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop, so that all publishes of the turn go out in one
        write."""
        if self._outbox and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.is_open and self._connection is not None:
            self._connection.write(self._write_outbox())
            if self._outbox:
                self._flushing = True
                task = asyncio.create_task(self._flush_when_drained(self._connection))
                self._draining.add(task)
                task.add_done_callback(self._draining.discard)

    async def _flush_when_drained(self, connection: Connection) -> None:
        await connection.drain()
        self._flush()

    def _write_outbox(self) -> bytes:
        """The frames of the waiting publishes, up to WRITE_BYTES. The client's own publish takes a lock,
        futures and a time-out for each message, and writes them one by one."""
        now, written = asyncio.get_running_loop().time(), 0
        parts: list[bytes] = []
        while self._outbox and written < WRITE_BYTES:
            pending = self._outbox.popleft()
            if pending.future.cancelled():
                continue
            try:
                message = self._frames(pending)
            except Exception as error:
                pending.future.set_exception(error)
                continue
            self._tag += 1
            self._tags[pending.key] = self._tag
            self._sent[self._tag] = pending
            pending.sent_at = now
            parts.append(message)
            written += len(message)
        return b"".join(parts)

    def _frames(self, pending: _PendingPublish) -> bytes:
        message = pending.message
        body, limit = message.body, self._frame_max - frames.OVERHEAD
        pending.key = message.properties.message_id or _fresh_id()
        if pending.key in self._tags:
            pending.key = _fresh_id()
            properties = message.properties.changed({PUBLISH_HEADER: pending.key})
        else:
            properties = message.properties.with_text("message_id", pending.key)
        encoded = properties.encoded()
        if len(encoded) > limit - 12:
            encoded = properties.without_large_headers(limit - 12).encoded()
        size, number = len(body), self._number
        parts = [
            frames.frame(frames.METHOD, number, _publish(message.exchange, message.routing_key)),
            frames.frame(frames.HEADER, number, frames.content_head(size) + encoded),
        ]
        parts += [frames.frame(frames.BODY, number, body[at : at + limit]) for at in range(0, size, limit)]
        return b"".join(parts)

    def _answered(self, tag: int, multiple: bool, taken: bool) -> None:
        error = None if taken else QueueFull("the queue is full")
        if not multiple:
            self.confirmed(tag, error)
            return
        for earlier in [sent for sent in self._sent if sent <= tag]:
            self.confirmed(earlier, error)

    def _returned(self, _method: bytes, properties: Properties, _body: bytes, _dropped: int) -> None:
        # A returned message is confirmed too, and the confirm comes after the return.
        header = properties.header(PUBLISH_HEADER)
        tag = self._tags.get(header if isinstance(header, str) else properties.message_id or "")
        if tag is not None:
            self.confirmed(tag, Unroutable("no queue took the message"))

    def confirmed(self, tag: int, error: WorkerError | None) -> None:
        """The broker has answered for one publish."""
        pending = self._sent.pop(tag, None)
        if pending is None:
            return
        self._tags.pop(pending.key, None)
        if pending.future.done():
            return
        self.confirmed_at = asyncio.get_running_loop().time()
        if error is None:
            pending.future.set_result(None)
        else:
            self._turned_down(pending, error)

    def _turned_down(self, pending: _PendingPublish, error: WorkerError) -> None:
        if pending.message.external:
            pending.future.set_exception(error)
            return
        # One of our own queues is full or gone. The request stays in its queue until this is corrected.
        self.events.publish_turned_down(pending.message.routing_key or pending.message.exchange, str(error))
        if isinstance(error, Unroutable):
            self.missing.set()
            # RabbitMQ counts what goes into the stream that is declared anew from 1 again, but the channel
            # goes on counting, and the numbers must not differ (see Publisher).
            self._stuck = self._stuck or self.is_for_stream
        elif pending.refusals >= STUCK_AFTER:
            self._stuck = True
        wait = ceiling(pending.refusals + 1, *RETRY)
        pending.refusals = min(pending.refusals + 1, 10)
        self._send_later(pending, wait)

    def _send_later(self, pending: _PendingPublish, wait: float) -> None:
        self._later.add(pending)
        asyncio.get_running_loop().call_later(wait, self._retry, pending)

    def _retry(self, pending: _PendingPublish) -> None:
        if pending in self._later:
            self._later.discard(pending)
            self._queue(pending)

    def _queue(self, pending: _PendingPublish) -> None:
        self._outbox.append(pending)
        self._flush_soon()

    def _take_back(self) -> None:
        """Put the publishes that the lost channel did not confirm at the front of the next one's outbox, in
        their order."""
        if not self.publishes_again:
            for pending in [*self._sent.values(), *self._outbox, *self._later]:
                _fail(pending, BrokerUnreachable("The channel was lost"))
            self._later.clear()
            self._outbox.clear()
            self._sent.clear()
            self._tags.clear()
            return
        kept: list[_PendingPublish] = []
        for pending in self._sent.values():
            pending.channel_losses += 1
            if pending.channel_losses > 1 and is_direct_reply(pending.message.routing_key):
                # It may have ended the connection itself, and a direct reply may be lost (contract §4).
                if not pending.future.done():
                    pending.future.set_exception(PublishRefused("the reply address ends the connection"))
            else:
                kept.append(pending)
        self._outbox.extendleft(reversed(kept))
        self._sent.clear()
        self._tags.clear()

    def _closed(self, reason: BaseException | None) -> None:
        """Settle the external publishes if the broker closed the channel for one that it forbids. It does not
        say which one."""
        if reason is None or isinstance(reason, aiormq.exceptions.ConnectionClosed):
            return
        self.events.channel_closed(self.name, " ".join(str(reason).split())[:200])
        if not isinstance(reason, aiormq.exceptions.AMQPChannelError):
            return
        is_missing = isinstance(reason, aiormq.exceptions.ChannelNotFoundEntity)
        if is_missing:
            self.missing.set()
        forbidden = isinstance(reason, aiormq.exceptions.ChannelAccessRefused)
        if forbidden:
            self._refused_until = asyncio.get_running_loop().time() + REFUSED_FOR
        keep: deque[_PendingPublish] = deque()
        for pending in self._outbox:
            gone = pending.message.external and (forbidden or pending.channel_losses > ALONE_AFTER)
            if gone and not pending.future.done():
                pending.future.set_exception(
                    Unroutable("the exchange is missing")
                    if is_missing
                    else PublishRefused("the broker does not take this message")
                )
            elif not gone and pending.channel_losses >= ALONE_AFTER:
                # One of them may close the channel each time, for example because it is larger than the
                # broker takes. From now on each goes at a moment of its own, so that the others get through.
                self._send_later(pending, random.uniform(*RETRY))  # noqa: S311
            elif not gone:
                keep.append(pending)
        self._outbox = keep


def _fail(pending: _PendingPublish, error: WorkerError) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)


@lru_cache(maxsize=1000)
def _publish(exchange: str, routing_key: str) -> bytes:
    """The frame of a mandatory Basic.Publish. All messages to one queue share it."""
    return frames.PUBLISH + b"\0\0" + short_string(exchange) + short_string(routing_key) + b"\x01"


def _tell(closed: "asyncio.Future[BaseException | None]", closing: "asyncio.Future[object]") -> None:
    if not closed.done():
        closed.set_result(None if closing.cancelled() else closing.exception())


_RUN = uuid4().hex[:20]
_NUMBERS = count()


def _fresh_id() -> str:
    """A message id that no other publish has: this process's own part, and a number."""
    return f"{_RUN}{next(_NUMBERS):012x}"
