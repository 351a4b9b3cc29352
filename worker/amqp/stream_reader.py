"""Reading a stream: from any offset to its end, only its first or last entry, or continuously.

Any user with the permission can write to it. What is not a record is skipped and reported to the listener; it
never ends the reading (transport.py removes properties that the client library cannot decode)."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from worker.amqp.causes import object_errors
from worker.amqp.connection import ANSWER_TIMEOUT, Connection, answered, connected, no_callback, opened
from worker.amqp.queue import MISSING
from worker.contract.words import CLOCK_HEADER, CONTROL_KEY
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.settings import Settings

PREFETCH = 500  # messages
CHECK_INTERVAL = 8.0  # seconds of silence before RabbitMQ is checked
POLL_INTERVAL = 0.05  # seconds to wait for entries that a replica of the stream does not have yet
MOST_LINES = 1_000  # of one message; more than a worker writes. Reading more would block the event loop
LOOKS = 6  # empty reads before a stream counts as empty: a busy broker may deliver the first entry late
OFFSET_HEADER = "x-stream-offset"

Start = Literal["first", "last", "next"] | int | datetime
"""Where to start: the oldest message, the last chunk, the end, an offset, or a broker's time (roughly)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the stream. No record in it or before it was received later than `clock` (microseconds
    since the epoch; None if the message does not say). `writer` is the message's app id."""

    offset: int
    clock: int | None
    records: list[dict[str, Any]]
    writer: str = ""


Entries = AsyncGenerator[Entry, None]


class StreamReader:
    """Reads one stream. Every method raises TopologyError (the stream is missing, or may not be read) or
    BrokerUnreachable."""

    def __init__(self, connection: Connection, stream: str, events: EventListener | None = None) -> None:
        self._connection = connection
        self.stream = stream
        # A CC or BCC header can route a publisher's message into any stream, but the message keeps its own
        # key.
        self._key = CONTROL_KEY if stream.endswith(".control") else stream
        self._events = events or EventListener()
        self._reach = -1  # the offset that reading must reach, as far as it is known

    async def first(self) -> Entry | None:
        """The oldest entry that is kept."""
        async with contextlib.aclosing(self.read("first", prefetch=1)) as entries:
            return await anext(entries, None)

    async def last(self) -> Entry | None:
        """The newest entry."""
        newest = None
        async for entry in self.read("last"):
            newest = entry
        return newest

    async def catch_up(self, mark: Callable[[], Awaitable[str]]) -> None:
        """After this, reading returns everything that was confirmed before the call. A replica of the stream
        lags behind when its node has just returned. `mark` writes a message and returns its id."""
        async with self._consumer("last", PREFETCH) as consumer, asyncio.timeout(ANSWER_TIMEOUT):
            written, reach = await mark(), -1
            while reach < 0:
                await consumer.more()
                async for message in consumer.arrived():
                    if message.message_id == written:
                        reach = self._entry(message).offset
            self._reach = reach

    async def read(
        self, start: Start, end: int | None = None, *, reach: int = -1, prefetch: int = PREFETCH
    ) -> Entries:
        """The entries from `start` up to, not including, the offset `end`. Without `end`: all that were
        confirmed when the call began, at least up to the offset `reach`. A start beyond the end of the stream
        yields nothing. A time starts a little early."""
        reach = max(reach, self._reach) if end is None else end - 1
        async with self._consumer(start, prefetch) as consumer:
            at, looks = start - 1 if isinstance(start, int) else -1, LOOKS
            shown_at = time.monotonic()
            while True:
                async for message in consumer.arrived():
                    entry = self._entry(message)
                    if end is not None and entry.offset >= end:
                        return
                    at, looks = entry.offset, 1
                    yield entry
                    shown_at = time.monotonic()
                # The broker delivers up to the new credit before it answers a request after the acks.
                await consumer.round_trip()
                if consumer.messages:
                    continue
                looks -= 1
                is_known = 0 <= reach <= at
                beyond_the_end = at < 0 and isinstance(start, datetime)
                if is_known or (looks <= 0 and (at >= reach or beyond_the_end)):
                    return
                if time.monotonic() - shown_at > ANSWER_TIMEOUT:
                    self._connection.abort()  # so that the next one goes to another node
                    raise BrokerUnreachable(f"The stream {self.stream} cannot be read to its end")
                await asyncio.sleep(POLL_INTERVAL)

    async def follow(self, start: Start) -> Entries:
        """The entries from `start` on, for as long as it is iterated."""
        async with self._consumer(start, PREFETCH) as consumer:
            while True:
                async for message in consumer.arrived():
                    yield self._entry(message)
                await consumer.more(asks=True)

    @contextlib.asynccontextmanager
    async def _consumer(self, start: Start, prefetch: int) -> AsyncIterator["_Consumer"]:
        async with opened(self._connection, f"The stream {self.stream} could not be read") as channel:
            consumer = _Consumer(self._connection, channel, self.stream, prefetch)
            with object_errors(f"stream {self.stream}", MISSING, "may not be read by this user"):
                await consumer.open(start)
                yield consumer

    def _entry(self, message: AbstractIncomingMessage) -> Entry:
        offset, clock = message.headers.get(OFFSET_HEADER), message.headers.get(CLOCK_HEADER)
        at = offset if isinstance(offset, int) else -1
        if message.routing_key != self._key:
            self._events.record_skipped(self.stream, at)
            return Entry(at, None, [])
        lines = [*filter(None, message.body.split(b"\n", MOST_LINES))]
        records = [record for line in lines if (record := _record(line)) is not None]
        if len(records) < len(lines):
            self._events.record_skipped(self.stream, at)  # once, however many lines there are
        return Entry(at, clock if isinstance(clock, int) else None, records, message.app_id or "")


@contextlib.asynccontextmanager
async def open_stream(
    settings: Settings, stream: str, events: EventListener | None = None
) -> AsyncIterator[StreamReader]:
    """A reader of any stream, on a connection of its own. Raises BrokerUnreachable."""
    async with connected(settings, stream.rpartition(".")[2]) as connection:
        yield StreamReader(connection, stream, events)


@dataclass(slots=True)
class _Consumer:
    """The messages that a channel delivers from one stream, then None."""

    connection: Connection
    channel: AbstractChannel
    stream: str
    prefetch: int
    messages: deque[AbstractIncomingMessage | None] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, start: Start) -> None:
        raw = await self.channel.get_underlay_channel()
        for ends in (self.channel.close_callbacks, raw.on_consumer_cancel_callbacks):
            ends.add(lambda *_: self._put(None))
        await self._consume(start, self._take)

    async def _consume(
        self, start: Start, take: Callable[[AbstractIncomingMessage], Awaitable[None]]
    ) -> None:
        queue = await self.channel.get_queue(self.stream, ensure=False)
        async with self._answered():
            await self.channel.set_qos(self.prefetch)
            tag = await queue.consume(take, arguments={OFFSET_HEADER: start})
            if take is no_callback:
                await queue.cancel(tag)

    async def arrived(self) -> AsyncIterator[AbstractIncomingMessage]:
        """The messages that have been delivered so far, acknowledged in batches: a stream never delivers
        further ahead than the prefetch."""
        taken = 0
        while self.messages:
            message = self.messages.popleft()
            if message is None:
                raise ConnectionError("the connection was lost, or the stream deleted")
            taken += 1
            yield message
            if taken * 2 >= self.prefetch or not self.messages:
                await message.ack(multiple=True)
                taken = 0

    async def round_trip(self) -> None:
        async with self._answered():
            await self.channel.set_qos(self.prefetch)

    async def more(self, *, asks: bool = False) -> None:
        """Wait for a delivery. With `asks`, RabbitMQ is checked every CHECK_INTERVAL: a node that is cut off
        keeps its clients and delivers nothing, but cannot add a consumer."""
        while not self.messages:
            self.news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL if asks else None):
                    await self.news.wait()
            if asks and not self.messages:
                await self._consume("next", no_callback)

    def _answered(self) -> contextlib.AbstractAsyncContextManager[None]:
        return answered(self.connection, f"The stream {self.stream} could not be read")

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self._put(message)

    def _put(self, message: AbstractIncomingMessage | None) -> None:
        self.messages.append(message)
        self.news.set()


def _record(line: bytes) -> dict[str, Any] | None:
    """A record, or None if the line is not a JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
