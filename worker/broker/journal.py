"""The journal: a stream with one secret-free record for each settled request (contract §1).

Records that are appended while a batch is in flight form the next batch. So under load many requests share
one publish, and no record waits for a timer. A message has one record per line; its header CLOCK_HEADER is
the worker's clock: no record in or before the message was received later. A message without a record is a
mark: a reader that has reached it has read everything that was confirmed before."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import Publisher
from worker.amqp.stream_reader import Entry, Start, StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.json_body import to_json
from worker.contract.selection import Selection
from worker.contract.words import CLOCK_HEADER, JOURNAL_TYPE
from worker.errors import WorkerError
from worker.events import EventListener
from worker.settings import Settings

BATCH_BYTES = 64_000  # of one message
CONTENT_TYPE = "application/x-ndjson"
FIRST_STEP = 500  # messages; each further step back is ten times as long
CLOCKS_DIFFER = timedelta(minutes=5)  # tolerated skew of clocks: the stream is read from so much earlier
RECONNECT_INTERVAL = 1.0  # seconds

Record = Mapping[str, Any]


@dataclass(slots=True)
class Journal:
    """Writes records through a publisher. `latest` returns the latest arrival time that was stamped
    (microseconds since the epoch). `writer` identifies this worker's messages."""

    _publisher: Publisher
    _stream: str
    _latest: Callable[[], int]
    _lines: list[bytes] = field(default_factory=list)
    _size: int = 0
    _next: "list[asyncio.Future[None]]" = field(default_factory=list)
    _in_flight: int = 0
    writer: str = field(default_factory=lambda: uuid4().hex)

    def append(self, record: Record) -> "asyncio.Future[None]":
        """Write one record. The future is done when the broker has confirmed it."""
        loop = asyncio.get_running_loop()
        line, written = to_json(record), loop.create_future()
        if not self._next and not self._in_flight:
            loop.call_soon(self._send)
        self._next.append(written)
        self._lines.append(line)
        self._size += len(line) + 1
        if self._size >= BATCH_BYTES:
            self._send()
        return written

    async def mark(self) -> str:
        """Write a message without a record, and return its message id once the broker has confirmed it."""
        mark = uuid4().hex
        await self._publish(b"", mark)
        return mark

    def _send(self) -> None:
        if not self._next:
            return
        batch, body = self._next, b"\n".join(self._lines)
        self._lines, self._size, self._next = [], 0, []
        self._in_flight += 1
        self._publish(body).add_done_callback(lambda sent: self._sent(sent, batch))

    def _publish(self, body: bytes, message_id: str | None = None) -> "asyncio.Future[None]":
        properties = build(
            content_type=CONTENT_TYPE,
            type=JOURNAL_TYPE,
            message_id=message_id,
            app_id=self.writer,
            headers={CLOCK_HEADER: self._latest()},
        )
        return self._publisher.send(Message("", self._stream, properties, body))

    def _sent(self, sent: "asyncio.Future[None]", batch: "list[asyncio.Future[None]]") -> None:
        self._in_flight -= 1
        for written in (each for each in batch if not each.done()):
            if sent.cancelled():
                written.cancel()
            elif (error := sent.exception()) is not None:
                written.set_exception(error)
            else:
                written.set_result(None)
        if not self._in_flight:
            self._send()


def open_journal(
    settings: Settings, events: EventListener | None = None
) -> AbstractAsyncContextManager[StreamReader]:
    """A reader of the journal on a connection of its own. Raises BrokerUnreachable."""
    return open_stream(settings, Topology(settings.prefix).journal, events)


@dataclass(slots=True)
class JournalPage:
    """Matching records, newest first, of all messages from the offset `back_to` on. `is_all`: the journal
    holds nothing older. `following` is the offset after the last message."""

    records: list[Record] = field(default_factory=list)
    back_to: int = 0
    following: int = 0
    is_all: bool = True


async def newest_first(
    reader: StreamReader,
    query: Selection,
    count: int | None,
    *,
    before: int | None = None,
    at_most: int | None = None,
) -> JournalPage:
    """The newest `count` matching records or a few more; all if `count` is None. Reads backwards from the
    offset `before`, over about `at_most` messages. Raises as StreamReader does."""
    newest, first = await reader.last(), await reader.first()
    if newest is None or first is None:
        return JournalPage()
    end = newest.offset + 1 if before is None else min(before, newest.offset + 1)
    page = JournalPage(back_to=end, following=newest.offset + 1)
    step = FIRST_STEP
    while page.back_to > first.offset and (count is None or len(page.records) < count):
        if at_most is not None and end - page.back_to >= at_most:
            break
        start = first.offset if count is None else max(first.offset, page.back_to - step)
        if query.since is not None:
            at = datetime.fromtimestamp(query.since / 1_000_000, UTC) - CLOCKS_DIFFER
            page.records = await matching(reader, query, at, end - 1)
            start = first.offset
        else:
            page.records += await matching(reader, query, start, page.back_to - 1)
        page.back_to, step = start, step * 10
    page.is_all = page.back_to <= first.offset
    return page


async def matching(reader: StreamReader, query: Selection, start: Start, last: int) -> list[Record]:
    """The matching records from `start` to the offset `last`, newest first."""
    entries = reader.read(start, last + 1)
    records: list[Record] = [record async for entry in entries for record in entry.records if record in query]
    return records[::-1]


async def follow(settings: Settings, start: int) -> AsyncGenerator[Entry, None]:
    """The entries from the offset `start` on, as they arrive. Never ends: if the journal cannot be read, this
    retries."""
    while True:
        with contextlib.suppress(WorkerError, ConnectionError):
            async with (
                open_journal(settings) as reader,
                contextlib.aclosing(reader.follow(start)) as entries,
            ):
                async for entry in entries:
                    start = entry.offset + 1
                    yield entry
        await asyncio.sleep(RECONNECT_INTERVAL)
