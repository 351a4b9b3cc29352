"""The partition log: the stream PREFIX.partitions, in which routers claim epochs and workers record barriers
(contract §10; tests/models/partition_protocol.py describes the protocol and checks it).

There is one kind of record. It states everything that its writer knows, and has a mark: a writer that reads
its own mark back has read everything that was confirmed before."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.amqp.connection import connected, keep_connected
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.stream_reader import Entry, StreamReader, open_stream
from worker.backoff import RECONNECT_SOON
from worker.broker.topology import MOST_PARTITIONS, Topology
from worker.contract.words import PARTITIONS_TYPE
from worker.pipeline.journey import Tools
from worker.settings import Settings

_PROPERTIES = build(content_type="application/json", type=PARTITIONS_TYPE)

READ_TIMEOUT = 10.0  # seconds for a record to be read; then it is written again

Number = Annotated[int, Field(ge=1, le=MOST_PARTITIONS)]  # of a partition
Count = Annotated[int, Field(ge=0, lt=1 << 62)]  # its successor must fit into a header too


class _Record(BaseModel):
    """One record: its writer, its claim, and the newest barrier of each partition that its writer knows, as
    epoch and arrival."""

    model_config = ConfigDict(hide_input_in_errors=True)

    by: str
    mark: str
    claim: Number | None = None
    settled: dict[Number, tuple[Count, Count]] = {}


class Barrier(NamedTuple):
    """The newest settled barrier of a partition. No request settled before it arrived later than
    `newest_arrival` (microseconds since the epoch)."""

    epoch: int = 0
    newest_arrival: int = 0


class PartitionState:
    """The state according to the records read so far."""

    def __init__(self) -> None:
        self.next_offset = 0
        self.epoch = 0  # the newest that was claimed
        self.partitions = 0  # the number of partitions of its router
        self.most_partitions = 0  # that a router has claimed, or that were found
        self.barriers: dict[int, Barrier] = {}
        self._claimed_by = ""

    def read(self, entry: Entry) -> int:
        """Read an entry. Returns the number of invalid records, which are skipped."""
        self.next_offset = entry.offset + 1
        skipped = 0
        for document in entry.records:
            try:
                record = _Record.model_validate(document)
            except ValidationError:
                skipped += 1
                continue
            for partition, known in record.settled.items():
                barrier = Barrier(*known)
                self.barriers[partition] = max(self.barriers.get(partition, Barrier()), barrier)
                self.epoch = max(self.epoch, barrier.epoch)
            if record.claim is not None and record.mark != self._claimed_by:  # else it was published twice
                self._claimed_by = record.mark
                # The offset increases from claim to claim, unless the stream was deleted.
                self.epoch = max(self.epoch + 1, entry.offset + 1)
                self.partitions = record.claim
                self.most_partitions = max(self.most_partitions, record.claim)
        return skipped


class PartitionLog:
    """Reads the stream while `follow` runs, and writes to it through a publisher."""

    def __init__(self, worker: str, tools: Tools) -> None:
        self._worker = worker
        self._tools = tools
        self._stream = Topology(tools.settings.prefix).partition_log
        self.state = PartitionState()
        self._marks: dict[str, asyncio.Future[int]] = {}
        self._changed = asyncio.Event()

    def barrier(self, partition: int) -> Barrier:
        """The newest known settled barrier."""
        return self.state.barriers.get(partition, Barrier())

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that were found, and all into which a router may have published: at least a
        barrier, then requests."""
        return frozenset(self.state.barriers) | frozenset(range(1, self.state.most_partitions + 1))

    async def claim(self, partitions: int) -> int:
        """Claim an epoch for a router with so many partitions: higher than all earlier ones."""
        return await self._write({"claim": partitions})

    async def catch_up(self) -> None:
        """Return when everything that was confirmed before the call is read."""
        await self._write({})

    async def settled(self, partition: int, barrier: Barrier) -> None:
        """Record that a barrier is settled, with everything before it. Returns when the record is
        confirmed."""
        self.state.barriers[partition] = max(self.barrier(partition), barrier)
        await self._write({})

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. It is checked after each entry that is read."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _write(self, record: dict[str, Any]) -> int:
        """Write a record, read up to it, and return the newest epoch."""
        mark = uuid4().hex
        barriers = {str(partition): list(known) for partition, known in self.state.barriers.items()}
        body = json.dumps({"by": self._worker, "mark": mark, "settled": barriers} | record).encode()
        read: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._marks[mark] = read
        try:
            while not read.done():  # a record that is deleted with its stream may never be read
                await self._tools.publisher.send(Message("", self._stream, _PROPERTIES, body))
                await asyncio.wait({read}, timeout=READ_TIMEOUT)
            return read.result()
        finally:
            self._marks.pop(mark, None)

    async def follow(self) -> None:
        """Read the stream continuously, until cancelled."""
        await keep_connected(
            partial(connected, self._tools.settings, "partitions"),
            lambda connection: self._read_on(StreamReader(connection, self._stream, self._tools.events)),
            lambda error: self._tools.events.partition_log_unreadable(str(error)),
            backoff=RECONNECT_SOON,
        )

    async def _read_on(self, reader: StreamReader) -> None:
        last = await reader.last()
        if last is None or last.offset + 1 < self.state.next_offset:
            self.state.next_offset = 0  # the stream was deleted and declared again
        async with contextlib.aclosing(reader.follow(self.state.next_offset or "first")) as entries:
            async for entry in entries:
                if self.state.read(entry):
                    self._tools.events.record_skipped(self._stream, entry.offset)
                for record in entry.records:
                    waiting = self._marks.get(str(record.get("mark")))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(self.state.epoch)
                self._changed.set()


async def read_partition_state(settings: Settings) -> PartitionState:
    """The state from the log. Raises TopologyError (the stream is missing, or may not be read) or
    BrokerUnreachable."""
    state = PartitionState()
    async with open_stream(settings, Topology(settings.prefix).partition_log) as reader:
        async for entry in reader.read("first"):
            state.read(entry)
    return state
