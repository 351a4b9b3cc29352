"""One channel in confirm mode: it publishes, takes in the confirms, and publishes again what was not
confirmed (ledger.py).

When RabbitMQ cannot take a publish, it closes the channel or the whole connection without saying which one it
was, and drops all that were under way. So every publish is kept until it is confirmed. Those that were under
way are then published apart: in groups, on connections of their own, until the one to blame is alone. All
others go on at once, and the one to blame is published in a reduced form (contract §2).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import count
from typing import Final
from uuid import uuid4

import aiormq.exceptions
from aiormq.channel import Channel

from worker.amqp import frames
from worker.amqp.connection import Connection, close_channel
from worker.amqp.ledger import Ledger, Message, Publish
from worker.amqp.properties import Properties, short_string
from worker.amqp.transport import FrameInterceptor
from worker.backoff import REPUBLISH
from worker.errors import BrokerUnreachable, PublishRefused, QueueFull, Unroutable, WorkerError
from worker.events import EventListener

CONFIRM_TIMEOUT: Final = 30.0  # seconds; then what happened is unknown, and it is published again
# After a stream's leader has died, RabbitMQ 3.x may go on sending to it until the next publish; records that
# are published twice do no harm.
STREAM_CONFIRM_TIMEOUT: Final = 3.0  # seconds
GIVE_UP_AFTER: Final = 2  # overdue confirms of one message to a queue that somebody else named
RENEW_STREAM_AFTER: Final = 2  # overdue confirms of one record: 4.3 confirms on a new channel at once
SWEEP_INTERVAL: Final = 1.0  # seconds between checks for overdue confirms
SILENT_AFTER: Final = 5.0  # seconds without a confirm; then a queue of ours counts as blocked
STUCK_AFTER: Final = 6  # refusals in a row of one message, about 6 s
RENEW_INTERVAL: Final = 10.0  # seconds; what is unconfirmed on a channel that closes is published twice
REFUSED_FOR: Final = 60.0  # seconds before a forbidden exchange is tried again
WRITE_BYTES: Final = 1_048_576  # bytes in one write; the next one waits until most are sent
PUBLISH_HEADER: Final = "x-ott-publish"  # tells apart pending publishes of one message id
APART_CONNECTIONS: Final = 8  # at a time, for publishes of which one has ended its connection
BLAMED_AFTER: Final = 2  # times that a message alone on its connection ended it

Open = Callable[[], Awaitable[Connection]]
Settle = Callable[[Message, WorkerError | None], None]


class Poisonous(PublishRefused):
    """RabbitMQ closes the channel or the connection on which this message is published."""


@dataclass(eq=False)
class ConfirmChannel:
    """One channel in confirm mode, opened again whenever it closes. `missing` is set when one of our own
    broker objects does not exist. `open_apart` opens a connection for publishes of which one has ended its
    own.

    Without `open_apart` it is opened once. A publish whose confirm does not come, or that is under way when
    the channel closes, ends in BrokerUnreachable: whether the broker took it is unknown."""

    name: str
    events: EventListener
    open_apart: Open | None = None
    missing: asyncio.Event = field(default_factory=asyncio.Event)
    is_for_stream: bool = False
    confirmed_at: float = 0.0
    blocked: dict[str, tuple[str, datetime]] = field(default_factory=dict)  # queues of ours: why, since when
    suspects: list[Publish] = field(default_factory=list)  # under way when the channel was lost
    closed_by: BaseException | None = None
    _ledger: Ledger = field(default_factory=Ledger)
    _connection: Connection | None = None
    _interceptor: FrameInterceptor | None = None
    _number: int = 0
    _frame_max: int = frames.LARGEST
    _flushing: bool = False
    _refused_until: float = 0.0
    _renew_at: float = 0.0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _stuck: bool = False

    def __len__(self) -> int:
        return len(self._ledger)

    @property
    def is_open(self) -> bool:
        return self._interceptor is not None and self._interceptor.is_open

    def send(self, message: Message) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        if not len(self):
            self.confirmed_at = loop.time()  # no publish was waiting for a confirm until now
        publish = Publish(message, loop.create_future())
        if message.external and loop.time() < self._refused_until:
            publish.future.set_exception(PublishRefused("publishing to other queues is not allowed"))
        else:
            self._queue(publish)
        return publish.future

    def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        for publish in self._ledger.clear():
            publish.future.cancel()

    async def serve(self, connection: Connection) -> None:
        """Keep a channel open on `connection` and write what is waiting, until cancelled."""
        try:
            await self._serve(connection)
        finally:
            if self.open_apart is None:
                for publish in self._ledger.clear():
                    _end(publish, _error_of(self.closed_by))

    async def _serve(self, connection: Connection) -> None:
        while connection.is_open:
            try:
                channel = await connection.raw_channel(confirms=True)
            except BrokerUnreachable:
                await asyncio.sleep(REPUBLISH.first)
                continue
            closed: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
            channel.closing.add_done_callback(partial(_tell, closed))
            self._open(channel, connection)
            try:
                self.closed_by = await self._until_closed(channel, closed)
            finally:
                self._interceptor = None
                self.suspects = self._ledger.lost()
            if self.open_apart is None:
                return
            self._closed(self.closed_by)
            await asyncio.sleep(REPUBLISH.first)

    def suspect(self) -> bool:
        """One of the publishes that were under way when the channel was lost is to blame: publish them apart.
        False if there are none, or the channel is for a stream: no publisher's bytes are in its messages."""
        suspects, self.suspects = [one for one in self.suspects if not one.future.done()], []
        if not suspects or self.is_for_stream:
            return False
        self._ledger.set_aside(suspects)
        self._run(self._publish_apart(suspects))
        return True

    def _open(self, channel: Channel, connection: Connection) -> None:
        self._connection = connection
        self._interceptor = connection.intercept(channel, self._returned, self._answered)
        self._number = channel.number
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
        now, oldest = asyncio.get_running_loop().time(), self._ledger.oldest
        if oldest is None or self._connection is None:
            return
        if self._connection.wire.is_blocked:
            # The publishes wait in the connection. The broker reads them when its alarm has ended.
            self._ledger.put_off(now)
            self._is_blocked(oldest.message, "RabbitMQ takes no messages: an alarm of memory or disk")
        elif self._connection.wire.heard_at < oldest.sent_at <= now - CONFIRM_TIMEOUT:
            # The peer is gone. Without heartbeats nothing else would show it.
            self._connection.abort()
        else:
            if oldest.sent_at <= now - SILENT_AFTER or oldest.overdue:
                self._is_blocked(oldest.message, "it confirms nothing")
            self._publish_overdue_again(now)

    def _publish_overdue_again(self, now: float) -> None:
        first = STREAM_CONFIRM_TIMEOUT if self.is_for_stream else CONFIRM_TIMEOUT
        for publish in self._ledger.overdue(now, first, CONFIRM_TIMEOUT):
            if self.open_apart is None:
                _end(publish, BrokerUnreachable("RabbitMQ did not confirm in time"))
            elif publish.message.external and publish.overdue >= GIVE_UP_AFTER:
                _end(publish, QueueFull("the queue does not confirm"))
            else:
                self._stuck |= self.is_for_stream and publish.overdue >= RENEW_STREAM_AFTER
                self._queue(publish)

    def _is_blocked(self, message: Message, why: str) -> None:
        if not message.external:
            self.blocked.setdefault(message.queue, (why, datetime.now(UTC)))

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop, so that all publishes of the turn go out in one
        write."""
        if self._ledger.is_waiting and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.is_open and self._connection is not None:
            self._connection.wire.write(self._waiting_frames())
            if self._ledger.is_waiting:
                self._flushing = True
                self._run(self._flush_when_drained(self._connection))

    async def _flush_when_drained(self, connection: Connection) -> None:
        await connection.wire.drain()
        self._flush()

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _waiting_frames(self) -> bytes:
        """The frames of the waiting publishes, up to WRITE_BYTES. The client's own publish takes a lock,
        futures and a time-out for each message, and writes them one by one."""
        now, written = asyncio.get_running_loop().time(), 0
        parts: list[bytes] = []
        while written < WRITE_BYTES and (publish := self._ledger.next()) is not None:
            try:
                message = self._frames(publish)
            except Exception as error:
                publish.future.set_exception(error)
                continue
            self._ledger.sent(publish, now)
            parts.append(message)
            written += len(message)
        return b"".join(parts)

    def _frames(self, publish: Publish) -> bytes:
        message = publish.message
        body, limit = message.body, self._frame_max - frames.OVERHEAD
        publish.key = message.properties.message_id or _fresh_id()
        if self._ledger.is_under_way(publish.key):
            publish.key = _fresh_id()
            properties = message.properties.changed({PUBLISH_HEADER: publish.key})
        else:
            properties = message.properties.with_text("message_id", publish.key)
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
        for publish in self._ledger.answered(tag, multiple=multiple):
            self.confirmed(publish, error)

    def _returned(self, _method: bytes, properties: Properties, _body: bytes, _dropped: int) -> None:
        # A returned message is confirmed too, and the confirm comes after the return.
        header = properties.header(PUBLISH_HEADER)
        for publish in self._ledger.returned(
            header if isinstance(header, str) else properties.message_id or ""
        ):
            self.confirmed(publish, Unroutable("no queue took the message"))

    def confirmed(self, publish: Publish, error: WorkerError | None) -> None:
        """The broker has answered for one publish."""
        if publish.future.done():
            return
        self.confirmed_at = asyncio.get_running_loop().time()
        if error is None:
            publish.future.set_result(None)
            if self.blocked:
                self.blocked.pop(publish.message.queue, None)
        else:
            self._turned_down(publish, error)

    def _turned_down(self, publish: Publish, error: WorkerError) -> None:
        if publish.message.external:
            publish.future.set_exception(error)
            return
        # One of our own queues is full or gone. The request stays in its queue until this is corrected.
        self.events.publish_turned_down(publish.message.queue, str(error))
        self._is_blocked(publish.message, str(error))
        if isinstance(error, Unroutable):
            self.missing.set()
            # RabbitMQ counts what goes into the stream that is declared anew from 1 again, but the channel
            # goes on counting, and the numbers must not differ (see Publisher).
            self._stuck = self._stuck or self.is_for_stream
        elif publish.refusals >= STUCK_AFTER:
            self._stuck = True
        self._later(publish, self._queue)

    def _later(self, publish: Publish, again: Callable[[Publish], None]) -> None:
        wait = REPUBLISH.ceiling(publish.refusals + 1)
        publish.refusals = min(publish.refusals + 1, 10)
        self._ledger.set_aside([publish])

        def retry() -> None:
            if self._ledger.is_aside(publish):
                again(publish)

        asyncio.get_running_loop().call_later(wait, retry)

    def _queue(self, publish: Publish) -> None:
        self._ledger.add(publish)
        self._flush_soon()

    def _closed(self, reason: BaseException | None) -> None:
        """Find out what to blame, where the broker closed the channel for one of the publishes."""
        if reason is None or isinstance(reason, aiormq.exceptions.ConnectionClosed):
            return
        told = " ".join(str(part) for part in reason.args if part is not None)
        self.events.channel_closed(self.name, " ".join(told.split())[:200] or "no reason was given")
        if is_blame(reason):
            self.suspect()
        if isinstance(reason, aiormq.exceptions.ChannelNotFoundEntity):
            self.missing.set()
        if isinstance(reason, aiormq.exceptions.ChannelAccessRefused):
            self._refused_until = asyncio.get_running_loop().time() + REFUSED_FOR
        error = _error_of(reason)
        if not isinstance(error, BrokerUnreachable):
            for publish in self.suspects:
                if publish.message.external:
                    _end(publish, error)

    async def _publish_apart(self, suspects: list[Publish]) -> None:
        assert self.open_apart is not None
        by_message = {publish.message: publish for publish in suspects}

        def settle(message: Message, outcome: WorkerError | None) -> None:
            publish = by_message.pop(message)
            if isinstance(outcome, Poisonous):
                self._poisonous(publish)
            elif isinstance(outcome, BrokerUnreachable):
                self._queue(publish)
            else:
                self._ledger.settled(publish)
                self.confirmed(publish, outcome)

        try:
            await publish_apart(self.open_apart, by_message, settle)
        finally:
            for publish in by_message.values():
                self._queue(publish)

    def _poisonous(self, publish: Publish) -> None:
        """RabbitMQ does not take this message, whatever else is published."""
        message = publish.message
        self.events.publish_turned_down(message.queue, "RabbitMQ closes the connection for this message")
        if message.external:
            self._ledger.settled(publish)
            _end(publish, PublishRefused("the broker does not take this message"))
        else:
            reduced = message.reduced or message.properties.reduced()
            publish.message = replace(message, properties=reduced, reduced=reduced)
            # Apart again: nothing shows yet that RabbitMQ takes this one.
            self._later(publish, lambda publish: self._run(self._publish_apart([publish])))


async def publish_apart(open_apart: Open, messages: Iterable[Message], settle: Settle) -> None:
    """Publish messages of which one has ended its connection, on connections that carry nothing else, and
    `settle` each as soon as its outcome is known: None where it is confirmed, Poisonous where it ends its
    connection alone, BrokerUnreachable where nothing is known. Groups that end theirs are split again."""
    turn = asyncio.Semaphore(APART_CONNECTIONS)

    async def publish(group: list[Message], blamed: int = 0) -> None:
        async with turn:
            left, is_to_blame = await _publish_group(open_apart, group, settle)
        blamed += len(group) == 1
        if not is_to_blame or blamed >= BLAMED_AFTER:
            for message in left:
                settle(message, Poisonous() if is_to_blame else BrokerUnreachable("The connection was lost"))
            return
        async with asyncio.TaskGroup() as parts:
            for part in _split(left):
                parts.create_task(publish(part, blamed))

    async with asyncio.TaskGroup() as groups:
        for group in _split(list(messages)):
            groups.create_task(publish(group))


async def _publish_group(
    open_apart: Open, group: list[Message], settle: Settle
) -> tuple[list[Message], bool]:
    """Publish on one connection. Returns those that have no outcome, and whether one of them is to blame."""
    try:
        connection = await open_apart()
    except BrokerUnreachable:
        return group, False
    channel = ConfirmChannel("apart", EventListener())
    serving = asyncio.create_task(channel.serve(connection), name="publish apart")
    left = []
    try:
        # As to foreign queues, so that each ends in its outcome.
        sent = {message: channel.send(replace(message, external=True)) for message in group}
        confirms = asyncio.ensure_future(asyncio.wait(sent.values()))
        await asyncio.wait([serving, confirms], return_when=asyncio.FIRST_COMPLETED)
        confirms.cancel()
        for message, future in sent.items():
            error = future.exception() if future.done() else BrokerUnreachable()
            if isinstance(error, BrokerUnreachable):
                left.append(message)
            elif error is None or isinstance(error, WorkerError):
                settle(message, error)
        return left, connection.was_closed_for_cause or is_blame(channel.closed_by)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        channel.abandon()
        await connection.close()


def is_blame(reason: BaseException | None) -> bool:
    """Whether the broker closed a channel for what a message holds."""
    kinds = aiormq.exceptions
    return isinstance(reason, kinds.AMQPChannelError) and not isinstance(
        reason, kinds.ChannelNotFoundEntity | kinds.ChannelAccessRefused
    )


def _error_of(reason: BaseException | None) -> WorkerError:
    """What to tell the senders of publishes to other queues, on whose channel the broker gave this reason."""
    if isinstance(reason, aiormq.exceptions.ChannelNotFoundEntity):
        return Unroutable("the exchange is missing")
    if isinstance(reason, aiormq.exceptions.ChannelAccessRefused):
        return PublishRefused("the broker does not take this message")
    return BrokerUnreachable("The channel was lost")


def _split(messages: list[Message]) -> Iterable[list[Message]]:
    size = -(-len(messages) // APART_CONNECTIONS)
    return [messages[at : at + size] for at in range(0, len(messages), size or 1)]


def _end(publish: Publish, error: WorkerError) -> None:
    if not publish.future.done():
        publish.future.set_exception(error)


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
