"""The status stream: what each worker is doing (contract §9), written by the workers, read by everybody."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from aio_pika import DeliveryMode, Message
from pydantic import ValidationError

from worker.amqp.connection import Connection, answered, opened
from worker.amqp.reconnect import keep_connected
from worker.amqp.stream_reader import StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.status import SILENT_AFTER, STATUS_INTERVAL, WorkerStatus
from worker.contract.words import STATUS_TYPE
from worker.settings import Settings

CHANGES_TOGETHER = 0.25  # seconds in which several changes make one record
STEP = 256  # records; how far the reader goes back at first


class StatusPublisher:
    """Publishes one worker's records on a connection of its own, so that its failures never hold up requests.
    A record that is lost is not repeated, since the next one follows soon."""

    def __init__(self, settings: Settings, describe: Callable[[], WorkerStatus]) -> None:
        self._settings = settings
        self._stream = Topology(settings.prefix).status
        self._describe = describe
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()

    def changed(self) -> None:
        """Publish a record soon: the state has changed."""
        self._changed.set()

    def stop(self) -> None:
        """Publish a last record, if there is a connection, and let `run` return."""
        self._stopping.set()
        self._changed.set()

    async def run(self) -> None:
        """Publish a record on every change and every few seconds, until `stop`."""
        await keep_connected(self._settings, "status", self._publish_on, lambda _: None, until=self._stopping)

    async def _publish_on(self, connection: Connection) -> None:
        what = "The status could not be published"
        async with opened(connection, what, confirms=True) as channel:
            while connection.is_open:
                is_last = self._stopping.is_set()
                record = Message(
                    self._describe().to_json(),
                    content_type="application/json",
                    delivery_mode=DeliveryMode.PERSISTENT,
                    type=STATUS_TYPE,
                )
                async with answered(connection, what):
                    await channel.default_exchange.publish(record, self._stream)
                if is_last:
                    return
                await self._until_changed()

    async def _until_changed(self) -> None:
        """Wait for a change, or until the next record is due."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_INTERVAL):
                await self._changed.wait()
            if not self._stopping.is_set():
                await asyncio.sleep(CHANGES_TOGETHER)
        self._changed.clear()


async def read_workers(settings: Settings) -> list[WorkerStatus]:
    """The newest record of each worker that has published one lately. Raises TopologyError (there is no such
    stream, or it may not be read) or BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).status) as reader:
        return await read_workers_by(reader)


async def read_workers_by(reader: StreamReader, within: timedelta = SILENT_AFTER) -> list[WorkerStatus]:
    """As `read_workers`, by an open reader of the status stream; of the workers that have said something
    `within` this time and have not stopped."""
    newest = await reader.last()
    if newest is None:
        return []
    since, back = datetime.now(UTC) - within, STEP
    while True:
        start = max(0, newest.offset - back + 1)
        records = await _read(reader, start, newest.offset)
        # Stop when the records are too old to matter.
        if start == 0 or not records or records[0].at < since:
            break
        back *= 4
    latest = {record.worker: record for record in records if record.at >= since}
    return sorted((each for each in latest.values() if each.state != "stopped"), key=lambda each: each.worker)


async def _read(reader: StreamReader, start: int, last: int) -> list[WorkerStatus]:
    records: list[WorkerStatus] = []
    async for entry in reader.read(start, last + 1):
        for document in entry.records:
            with contextlib.suppress(ValidationError):
                records.append(WorkerStatus.model_validate(document))
    return records
