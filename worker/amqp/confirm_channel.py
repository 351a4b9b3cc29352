"""One channel in confirm mode: it writes publishes, keeps each until it is confirmed (ledger.py), and watches
for confirms that do not arrive.

When RabbitMQ cannot accept a publish, it closes the channel or the connection without naming the publish, and
drops all unconfirmed ones. A KeptChannel (publisher.py) then publishes those again; a LoneChannel fails them.
To find the poisonous one, they are published one at a time, on connections that carry nothing else."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeVar
from uuid import uuid4

import aiormq.exceptions

from worker.amqp import frames
from worker.amqp.connection import ANSWER_TIMEOUT, Connection, RawChannel, close_channel
from worker.amqp.ledger import Ledger, Message, Publish
from worker.amqp.properties import Properties, short_string
from worker.amqp.transport import FrameInterceptor
from worker.errors import BrokerUnreachable, PublishRefused, QueueFull, Unroutable, WorkerError
from worker.events import EventListener

CONFIRM_TIMEOUT: Final = 30.0  # seconds; then the outcome is unknown
# After a stream's leader has died, RabbitMQ 3.x may keep sending to it until the next publish. Duplicate
# records are harmless.
STREAM_CONFIRM_TIMEOUT: Final = 3.0  # seconds
SWEEP_INTERVAL: Final = 1.0  # seconds between checks for overdue confirms
SILENT_AFTER: Final = 5.0  # seconds without a confirm; then a queue of the worker counts as blocked
RENEW_INTERVAL: Final = 10.0  # seconds; each renewal publishes the unconfirmed messages twice
WRITE_BYTES: Final = 1_048_576  # bytes in one write; the next one waits until most are sent
LOST: Final = "the connection to RabbitMQ was lost"
ISOLATED_CONNECTIONS: Final = 8  # at a time
ISOLATED_TIMEOUT: Final = 5.0  # seconds for a confirm; then the others for its queue are not tried
PUBLISH_HEADER: Final = "x-ott-publish"  # distinguishes pending publishes with the same message id

T = TypeVar("T")
Open = Callable[[], Awaitable[Connection]]
Settle = Callable[[Message, WorkerError | None], None]


class ConfirmChannel:
    """Publishes and receives the confirms, on one channel after the other."""

    def __init__(self, name: str, events: EventListener, *, is_for_stream: bool = False) -> None:
        self.name = name
        self.events = events
        self.is_for_stream = is_for_stream
        self.confirmed_at = 0.0
        self.blocked: dict[str, tuple[str, datetime]] = {}  # queues of the worker: why, since when
        self._pending: dict[asyncio.Future[None], Publish] = {}  # without an outcome
        self._ledger = Ledger()
        self._connection: Connection | None = None
        self._interceptor: FrameInterceptor | None = None
        self._flushing = False
        self._is_stuck = False  # another channel is needed
        self._renew_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Publishes without an outcome."""
        return len(self._pending)

    @property
    def is_open(self) -> bool:
        return self._interceptor is not None and self._interceptor.is_open

    def send(self, message: Message) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        if not len(self):
            self.confirmed_at = loop.time()  # silence counts from the first pending publish
        publish = Publish(message, loop.create_future())
        self._pending[publish.future] = publish
        publish.future.add_done_callback(self._pending.pop)
        self._queue(publish)
        return publish.future

    async def close(self) -> None:
        """Cancel all publishes without an outcome."""
        tasks = [*self._tasks]
        for future in (*tasks, *self._pending):
            future.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, connection: Connection) -> None:
        """Open a channel on `connection`, and write waiting publishes until it has closed. Raises
        BrokerUnreachable if it does not open."""
        channel = await connection.raw_channel(confirms=True)
        self._connection = connection
        self._interceptor = connection.intercept(channel, self._returned, self._answered)
        self.confirmed_at = asyncio.get_running_loop().time()
        self._flush_soon()
        closing = channel.closing  # read once: aiormq keeps every future that it returns
        try:
            while not closing.done():
                await asyncio.wait({closing}, timeout=SWEEP_INTERVAL)
                if not closing.done():
                    self._sweep()
                if self._is_stuck and asyncio.get_running_loop().time() >= self._renew_at:
                    await self._renew(channel, closing)
        finally:
            self._interceptor = None
            has_reason = closing.done() and not closing.cancelled()
            self._lost(self._ledger.lost(), closing.exception() if has_reason else None)

    async def _renew(self, channel: RawChannel, closing: "asyncio.Future[object]") -> None:
        """Close the channel, so that the next one is opened. RabbitMQ's channel remembers that a quorum queue
        was full, and keeps rejecting after the limit is raised (seen on 3.10)."""
        self._renew_at, self._is_stuck = asyncio.get_running_loop().time() + RENEW_INTERVAL, False
        self._interceptor = None  # writing on a channel that is closing would end the connection
        await close_channel(channel, SWEEP_INTERVAL)
        await asyncio.wait({closing}, timeout=SWEEP_INTERVAL)
        if not closing.done() and self._connection is not None:
            self._connection.abort()

    def _sweep(self) -> None:
        """Publish again what has waited too long: a half-dead peer may never confirm it."""
        now, oldest = asyncio.get_running_loop().time(), self._ledger.oldest
        if oldest is None or self._connection is None:
            return
        if self._connection.wire.is_blocked:
            # The broker reads the publishes when its alarm has ended.
            self._ledger.put_off(now)
            self._is_blocked(oldest.message, "RabbitMQ accepts no messages: a memory or disk alarm")
        elif self._connection.wire.heard_at < oldest.sent_at <= now - CONFIRM_TIMEOUT:
            # The peer is gone. Without heartbeats nothing else shows it.
            self._connection.abort()
        else:
            if oldest.sent_at <= now - SILENT_AFTER or oldest.overdue:
                self._is_blocked(oldest.message, "it confirms nothing")
            first = STREAM_CONFIRM_TIMEOUT if self.is_for_stream else CONFIRM_TIMEOUT
            for publish in self._ledger.overdue(now, first, CONFIRM_TIMEOUT):
                self._late(publish)

    def _is_blocked(self, message: Message, why: str) -> None:
        if not message.external:
            self.blocked.setdefault(message.queue, (why, datetime.now(UTC)))

    def _flush_soon(self) -> None:
        """Write at the end of this turn of the loop: all publishes of the turn share one write."""
        if self._ledger.is_waiting and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        connection, interceptor = self._connection, self._interceptor
        if connection is None or interceptor is None or not interceptor.is_open:
            return
        connection.wire.write(self._waiting_frames(interceptor.channel, connection.frame_max))
        if self._ledger.is_waiting:
            self._flushing = True
            self._run(self._flush_when_drained(connection))

    async def _flush_when_drained(self, connection: Connection) -> None:
        await connection.wire.drain()
        self._flush()

    def _run(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _waiting_frames(self, number: int, frame_max: int) -> bytes:
        """The frames of the waiting publishes, up to WRITE_BYTES. The client library needs a lock, futures, a
        time-out and a write for each message."""
        now, written = asyncio.get_running_loop().time(), 0
        parts: list[bytes] = []
        while written < WRITE_BYTES and (publish := self._ledger.next()) is not None:
            try:
                message = self._frames(publish, number, frame_max - frames.OVERHEAD)
            except Exception as error:
                publish.future.set_exception(error)
                continue
            self._ledger.sent(publish, now)
            parts.append(message)
            written += len(message)
        return b"".join(parts)

    def _frames(self, publish: Publish, number: int, limit: int) -> bytes:
        """The frames of one publish, each with a payload of at most `limit` bytes."""
        message = publish.message
        body, size = message.body, len(message.body)
        publish.key = message.properties.message_id or uuid4().hex
        if self._ledger.is_in_flight(publish.key):
            publish.key = uuid4().hex
            properties = message.properties.changed({PUBLISH_HEADER: publish.key})
        else:
            properties = message.properties.with_text("message_id", publish.key)
        encoded = properties.encoded()
        if len(encoded) > limit - 12:
            encoded = properties.without_large_headers(limit - 12).encoded()
        parts = [
            frames.frame(frames.METHOD, number, _publish(message.exchange, message.routing_key)),
            frames.frame(frames.HEADER, number, frames.content_head(size) + encoded),
        ]
        parts += [frames.frame(frames.BODY, number, body[at : at + limit]) for at in range(0, size, limit)]
        return b"".join(parts)

    def _answered(self, tag: int, multiple: bool, accepted: bool) -> None:
        error = None if accepted else QueueFull("the queue is full")
        for publish in self._ledger.answered(tag, multiple=multiple):
            self.confirmed(publish, error)

    def _returned(self, _method: bytes, properties: Properties, _body: bytes, _dropped: int) -> None:
        # The broker confirms a returned message too, after the return. A dead letter of a replay still has
        # the header of the replay's publish.
        header, message_id = properties.header(PUBLISH_HEADER), properties.message_id or ""
        is_known = isinstance(header, str) and self._ledger.is_in_flight(header)
        for publish in self._ledger.returned(str(header) if is_known else message_id):
            self.confirmed(publish, Unroutable("the message was routed to no queue"))

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
        """The broker has rejected or returned a publish."""
        publish.fail(error)

    def _late(self, publish: Publish) -> None:
        """No confirm has arrived in time: whether the broker has the message is unknown."""
        raise NotImplementedError

    def _lost(self, in_flight: list[Publish], reason: BaseException | None) -> None:
        """The channel has closed with these publishes in flight; `reason` is the broker's, if it gave one."""
        raise NotImplementedError

    def _queue(self, publish: Publish) -> None:
        self._ledger.add(publish)
        self._flush_soon()


def is_blame(reason: BaseException | None) -> bool:
    """Whether the broker closed a channel because of a message's content."""
    kinds = aiormq.exceptions
    return isinstance(reason, kinds.AMQPChannelError) and not isinstance(
        reason, kinds.ChannelNotFoundEntity | kinds.ChannelAccessRefused
    )


def error_of(reason: BaseException | None) -> WorkerError | None:
    """The outcome of the publishes on a channel that the broker closed for this reason, if it is known."""
    if isinstance(reason, aiormq.exceptions.ChannelNotFoundEntity):
        return Unroutable("the exchange is missing")
    if isinstance(reason, aiormq.exceptions.ChannelAccessRefused):
        return PublishRefused("the broker does not accept this message")
    return None


@lru_cache(maxsize=1000)
def _publish(exchange: str, routing_key: str) -> bytes:
    """The payload of a mandatory Basic.Publish. All messages to one queue share it."""
    return frames.PUBLISH + b"\0\0" + short_string(exchange) + short_string(routing_key) + b"\x01"


class Poisonous(PublishRefused):
    """RabbitMQ closes the channel or connection on which this message is published."""


class LoneChannel(ConfirmChannel):
    """A channel that is opened once, on a connection of its own, and publishes nothing twice. `lost` is done,
    with the reason, when the channel can no longer publish. Pending publishes then end in BrokerUnreachable:
    whether the broker has them is unknown."""

    def __init__(self, name: str, events: EventListener, connection: Connection, source: Open) -> None:
        super().__init__(name, events)
        self.connection = connection
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._source = source
        self._suspects: list[Publish] = []  # publishes in flight when the channel was lost
        self._closed_by: BaseException | None = None
        self._probing: asyncio.Task[set[Message]] | None = None
        self._run(self._serve())

    @classmethod
    async def open(cls, name: str, events: EventListener, source: Open) -> "LoneChannel":
        """A channel on a connection from `source`, which is closed with it. Raises BrokerUnreachable."""
        return cls(name, events, await source(), source)

    @property
    def is_usable(self) -> bool:
        return self.connection.is_open and not self.lost.done()

    @property
    def was_closed_for_cause(self) -> bool:
        """Whether RabbitMQ closed it because of a message."""
        return self.connection.was_closed_for_cause or is_blame(self._closed_by)

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future raises BrokerUnreachable if the outcome is unknown or the channel is lost; else
        Unroutable, QueueFull or PublishRefused."""
        sent = super().send(message)
        if self.lost.done():
            self._end(BrokerUnreachable(self.lost.result()))
        return sent

    async def close(self) -> None:
        """Close the connection."""
        self._lose("closed")
        await super().close()
        await self.connection.close()

    async def poisonous(self) -> set[Message]:
        """The messages because of which RabbitMQ closed it."""
        if self._probing is None:
            self._probing = self._run(self._probe())
        return await asyncio.shield(self._probing)

    async def _serve(self) -> None:
        try:
            with contextlib.suppress(BrokerUnreachable):
                await self.serve(self.connection)
        finally:  # also after a defect: else publishes wait forever
            self._lose(LOST)

    def _late(self, publish: Publish) -> None:
        self._lose("RabbitMQ did not confirm in time")

    def _lost(self, in_flight: list[Publish], reason: BaseException | None) -> None:
        self._suspects, self._closed_by = in_flight, reason
        self._lose(LOST)

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
            self._end(error_of(self._closed_by) or BrokerUnreachable(why))

    def _end(self, error: WorkerError) -> None:
        for publish in self._pending.values():
            publish.fail(error)

    async def _probe(self) -> set[Message]:
        """Publish the suspects again, to a queue that does not exist: no queue receives a second copy."""
        found: set[Message] = set()
        if not self.was_closed_for_cause:
            return found
        nowhere = uuid4().hex
        probes = {replace(one.message, routing_key=nowhere, body=b""): one.message for one in self._suspects}

        def settle(probe: Message, outcome: WorkerError | None) -> None:
            if isinstance(outcome, Poisonous):
                found.add(probes[probe])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await publish_isolated(self._source, probes, settle)
        return found


async def publish_isolated(source: Open, messages: Iterable[Message], settle: Settle) -> None:
    """Publish messages one at a time, because one of them has ended its connection. Calls `settle` for each
    as soon as its outcome is known: None if it is confirmed, Poisonous if it ended its connection twice, else
    the broker's error. A message of unknown outcome is not settled."""
    left, blamed, silent = deque(messages), set[Message](), set[str]()

    async def publish_in_turn() -> None:
        with contextlib.suppress(BrokerUnreachable):
            while left:
                channel = await LoneChannel.open("isolated", EventListener(), source)
                try:
                    while left and not channel.lost.done():
                        await publish(channel, left.popleft())
                finally:
                    await channel.close()

    async def publish(channel: LoneChannel, message: Message) -> None:
        if message.queue in silent:
            return
        outcome = await _outcome(channel, message)
        if isinstance(outcome, Poisonous) and message not in blamed:
            blamed.add(message)
            left.append(message)
        elif isinstance(outcome, BrokerUnreachable):
            silent.add(message.queue)
        else:
            settle(message, outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(ISOLATED_CONNECTIONS, len(left))):
            group.create_task(publish_in_turn(), name="publish isolated")


async def _outcome(channel: LoneChannel, message: Message) -> WorkerError | None:
    try:
        async with asyncio.timeout(ISOLATED_TIMEOUT):
            await channel.send(message)
    except TimeoutError:
        return BrokerUnreachable("RabbitMQ did not confirm in time")
    except BrokerUnreachable as error:
        return Poisonous() if channel.was_closed_for_cause else error
    except WorkerError as error:
        return error
    return None
