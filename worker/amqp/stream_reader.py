"""Reading a stream: from any place to its end, only its first or last entry, or on and on as it grows."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import aiormq.exceptions

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Channel, Connection, close_channel, connect
from worker.amqp.consumer import Delivery, delivery_of, no_callback
from worker.amqp.properties import Properties
from worker.contract.words import CLOCK_HEADER
from worker.errors import Problem, TopologyError
from worker.settings import Settings

PREFETCH = 500  # messages
LARGEST_MESSAGE = 262_144  # bytes; a larger message is not the worker's, and its records are not read
RPC_TIMEOUT = 30.0  # seconds
POLL_INTERVAL = 0.05  # seconds to wait for entries that a replica of the stream does not show yet
OFFSET_HEADER = "x-stream-offset"

Start = Literal["first", "last"] | int | datetime
"""Where to begin: the oldest message, the last chunk, an offset, or a broker's time (roughly)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the stream. No record in it or before it was received later than `clock`
    (microseconds since the epoch), None where the message does not say."""

    offset: int
    clock: int | None
    records: list[dict[str, Any]]
    routing_key: str = ""


Entries = AsyncGenerator[Entry, None]


class StreamReader:
    """Reads one stream. Every method raises TopologyError (there is no such stream, or it may not be read)
    or BrokerUnreachable."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream

    async def first(self) -> Entry | None:
        """The oldest entry that is kept."""
        async with contextlib.aclosing(self.read("first", prefetch=1)) as entries:
            return await anext(entries, None)

    async def last(self) -> Entry | None:
        """The newest entry."""
        newest = None
        async with contextlib.aclosing(self.read("last")) as entries:
            async for entry in entries:
                newest = entry
        return newest

    async def catch_up(self, mark: Callable[[], Awaitable[str]]) -> None:
        """Return when reading shows all that was confirmed before this call. A replica of the stream lags
        behind when its node has just come back. `mark` writes a message and returns its id."""
        async with self._consumer("last", PREFETCH) as consumer, asyncio.timeout(RPC_TIMEOUT):
            written = await mark()
            while written not in await consumer.message_ids():
                await consumer.more()

    async def read(self, start: Start, *, reach: int = -1, prefetch: int = PREFETCH) -> Entries:
        """The entries from `start` to all that was confirmed when this began, and at least to the
        offset `reach`; a start beyond the end gives none. A time begins a little early, or nowhere."""
        async with self._consumer(start, prefetch) as consumer:
            at = start - 1 if isinstance(start, int) else -1
            while True:
                async for entry in consumer.arrived():
                    at = entry.offset
                    yield entry
                # The broker delivers up to the new credit before it answers a request that follows the acks.
                await consumer.round_trip()
                beyond_the_end = at < 0 and isinstance(start, datetime)
                if consumer.is_empty and (at >= reach or beyond_the_end):
                    return
                if consumer.is_empty:
                    await asyncio.sleep(POLL_INTERVAL)

    async def follow(self, start: Start) -> Entries:
        """The entries from `start` on, for as long as it is iterated."""
        async with self._consumer(start, PREFETCH) as consumer:
            while True:
                async for entry in consumer.arrived():
                    yield entry
                await consumer.more()

    @contextlib.asynccontextmanager
    async def _consumer(self, start: Start, prefetch: int) -> AsyncIterator["_StreamConsumer"]:
        channel = await self._connection.channel()
        consumer = _StreamConsumer(self._connection, channel, prefetch)
        try:
            with broker_errors(f"The stream {self._stream} could not be read"):
                await self._start(channel, prefetch, start)
                yield consumer
        finally:
            await close_channel(channel, RPC_TIMEOUT)

    async def _start(self, channel: Channel, prefetch: int, start: Start) -> None:
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                await channel.basic_qos(prefetch_count=prefetch)
                await channel.basic_consume(self._stream, no_callback, arguments={OFFSET_HEADER: start})
        except aiormq.exceptions.ChannelNotFoundEntity:
            raise TopologyError(f"The stream {self._stream} is missing: start the worker once") from None
        except aiormq.exceptions.ChannelAccessRefused:
            raise TopologyError(
                f"The stream {self._stream} may not be read by this user", Problem.FORBIDDEN
            ) from None


@contextlib.asynccontextmanager
async def open_stream(settings: Settings, stream: str) -> AsyncIterator[StreamReader]:
    """A reader of any stream, on a connection of its own. Raises BrokerUnreachable."""
    connection = await connect(settings, stream.rpartition(".")[2])
    try:
        yield StreamReader(connection, stream)
    finally:
        await connection.close()


class _StreamConsumer:
    """What a channel delivers, entry by entry."""

    def __init__(self, connection: Connection, channel: Channel, prefetch: int) -> None:
        self._channel = channel
        self._prefetch = prefetch
        self._messages: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._is_cancelled = False
        channel.closing.add_done_callback(lambda _: self._news.set())
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)
        connection.intercept(channel, self._take, keeps_body=lambda size: size <= LARGEST_MESSAGE)

    @property
    def is_empty(self) -> bool:
        return not self._messages

    def _on_cancelled(self, _: object) -> None:
        self._is_cancelled = True
        self._news.set()

    def _take(self, method: bytes, properties: Properties, body: bytes, dropped: int) -> None:
        self._messages.append(delivery_of(method, properties, body, dropped))
        self._news.set()

    async def arrived(self) -> AsyncIterator[Entry]:
        """The entries that have been delivered so far. Each is acknowledged as it is taken, because a stream
        never delivers further ahead than the prefetch."""
        taken, tag = 0, 0
        while self._messages:
            message = self._messages.popleft()
            tag, taken = message.tag, taken + 1
            entry = _entry(message)
            if entry is not None:
                yield entry
            if taken * 2 >= self._prefetch or not self._messages:
                await self._channel.basic_ack(tag, multiple=True)
                taken = 0

    async def message_ids(self) -> set[str]:
        """The ids of the messages that have been delivered so far, as in `arrived`."""
        messages, self._messages = self._messages, deque()
        if messages:
            await self._channel.basic_ack(messages[-1].tag, multiple=True)
        return {message.properties.message_id or "" for message in messages}

    async def round_trip(self) -> None:
        self._check()
        async with asyncio.timeout(RPC_TIMEOUT):
            await self._channel.basic_qos(prefetch_count=self._prefetch)

    async def more(self) -> None:
        """Wait for a delivery."""
        while not self._messages:
            self._check()
            self._news.clear()
            await self._news.wait()

    def _check(self) -> None:
        """Raise where nothing comes any more."""
        if self._channel.is_closed:
            raise ConnectionError("connection lost")
        if self._is_cancelled:
            raise ConnectionError("the broker cancelled the consumer: the stream was deleted")


def _entry(message: Delivery) -> Entry | None:
    properties = message.properties
    offset, clock = properties.header(OFFSET_HEADER), properties.header(CLOCK_HEADER)
    if not isinstance(offset, int):
        return None
    records = [record for line in message.body.split(b"\n") if (record := _record(line)) is not None]
    return Entry(offset, clock if isinstance(clock, int) else None, records, message.routing_key)


def _record(line: bytes) -> dict[str, Any] | None:
    """A record, or None for anything in the stream that the worker did not write."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
