"""The status stream: what each worker is doing (contract §9), written by the workers, read by everybody."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from aiormq import spec
from pydantic import ValidationError

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Channel, Connection, connect
from worker.amqp.stream_reader import StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.status import SILENT_AFTER, STATUS_INTERVAL, WorkerStatus
from worker.contract.words import STATUS_TYPE
from worker.errors import BrokerUnreachable
from worker.settings import Settings

CHANGES_TOGETHER = 0.25  # seconds in which several changes make one record
RECONNECT_INTERVAL = 5.0  # seconds
PUBLISH_TIMEOUT = 5.0  # seconds; longer during an alarm, when nothing is published
STEP = 256  # records; how far the reader goes back at first


class StatusPublisher:
    """Publishes one worker's records on a connection of its own, so that its failures never hold up requests.
    A record that is lost is not repeated, since the next one follows soon."""

    def __init__(self, settings: Settings, describe: Callable[[], WorkerStatus]) -> None:
        self._settings = settings
        self._stream = Topology(settings.prefix).status
        self._describe = describe
        self._changed = asyncio.Event()
        self._is_stopping = False

    def changed(self) -> None:
        """Publish a record soon: the state has changed."""
        self._changed.set()

    def stop(self) -> None:
        """Publish a last record, if there is a connection, and let `run` return."""
        self._is_stopping = True
        self._changed.set()

    async def run(self) -> None:
        """Publish a record on every change and every few seconds, until `stop`."""
        while not self._is_stopping:
            with contextlib.suppress(BrokerUnreachable):
                connection = await connect(self._settings, "status")
                try:
                    await self._publish_on(connection)
                finally:
                    await connection.close()
            await self._wait(RECONNECT_INTERVAL)

    async def _publish_on(self, connection: Connection) -> None:
        channel = await connection.channel()
        while connection.is_open:
            is_last = self._is_stopping
            await self._publish(channel)
            if is_last:
                return
            await self._wait(STATUS_INTERVAL)

    async def _wait(self, longest: float) -> None:
        """Until something has changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self._changed.wait()
            if not self._is_stopping:
                await asyncio.sleep(CHANGES_TOGETHER)
        self._changed.clear()

    async def _publish(self, channel: Channel) -> None:
        properties = spec.Basic.Properties(
            content_type="application/json", delivery_mode=2, message_type=STATUS_TYPE
        )
        with broker_errors("The status could not be published"):
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await channel.basic_publish(
                    self._describe().to_json(), routing_key=self._stream, properties=properties
                )


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


async def _read(reader: StreamReader, start: int, reach: int) -> list[WorkerStatus]:
    records: list[WorkerStatus] = []
    async with contextlib.aclosing(reader.read(start, reach=reach)) as entries:
        async for entry in entries:
            for document in entry.records:
                with contextlib.suppress(ValidationError):
                    records.append(WorkerStatus.model_validate(document))
    return records
