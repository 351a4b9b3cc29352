"""The journal: a stream with one secret-free record for each settled request (contract §1).

Records that settle while a batch is on its way form the next batch, so the journal costs one publish
for many requests under load, and none waits for a timer. A message holds one record a line, and in a
header how far the worker's clock had come: no record up to here was received later than that. A message
without a record is a mark: whoever reads it has read all that was confirmed before it was written.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from uuid import uuid4

from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import Publisher
from worker.amqp.stream_reader import StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.json_body import to_json
from worker.contract.words import CLOCK_HEADER, JOURNAL_TYPE
from worker.events import EventListener
from worker.settings import Settings

BATCH_BYTES = 64_000  # of one message
CONTENT_TYPE = "application/x-ndjson"

Record = Mapping[str, Any]


class Clock(Protocol):
    """Times of arrival."""

    @property
    def latest(self) -> int:
        """The newest time given out, in microseconds since the epoch."""


class Journal:
    """Writes records through a publisher."""

    def __init__(self, publisher: Publisher, topology: Topology, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock
        self._stream = topology.journal
        self._lines: list[bytes] = []
        self._size = 0
        self._next: list[asyncio.Future[None]] = []
        self._on_its_way = 0

    def append(self, record: Record) -> "asyncio.Future[None]":
        """Write one record. The future is done when the broker has confirmed it."""
        loop = asyncio.get_running_loop()
        line, written = to_json(record), loop.create_future()
        if not self._next and not self._on_its_way:
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
        self._on_its_way += 1
        self._publish(body).add_done_callback(lambda sent: self._sent(sent, batch))

    def _publish(self, body: bytes, message_id: str | None = None) -> "asyncio.Future[None]":
        properties = build(
            content_type=CONTENT_TYPE,
            type=JOURNAL_TYPE,
            message_id=message_id,
            headers={CLOCK_HEADER: self._clock.latest},
        )
        return self._publisher.send(Message("", self._stream, properties, body))

    def _sent(self, sent: "asyncio.Future[None]", batch: "list[asyncio.Future[None]]") -> None:
        self._on_its_way -= 1
        error = None if sent.cancelled() else sent.exception()
        for written in (each for each in batch if not each.done()):
            if sent.cancelled():
                written.cancel()
            elif error is not None:
                written.set_exception(error)
            else:
                written.set_result(None)
        if not self._on_its_way:
            self._send()


@contextlib.asynccontextmanager
async def open_journal(
    settings: Settings, events: EventListener | None = None
) -> AsyncIterator[StreamReader]:
    """A reader of the journal on a connection of its own. Raises BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).journal, events) as reader:
        yield reader
