"""The status stream (what each worker is doing) and the control stream (operators' orders and changes;
contract §9)."""

import asyncio
import contextlib
import getpass
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import PublishError
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from pydantic import ValidationError

from worker.amqp.connection import Connection, answered, connected, keep_connected, opened, pause
from worker.amqp.stream_reader import Entry, StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.status import SILENT_AFTER, STATUS_INTERVAL, Order, Pause, WorkerStatus, standing_pause
from worker.contract.words import CONTROL_KEY, CONTROL_TYPE, STATUS_TYPE
from worker.errors import PublishRefused, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

CLOCKS_DIFFER = timedelta(minutes=1)  # tolerated skew of clocks: the stream is read from so much earlier
CHANGES_TOGETHER = 0.25  # seconds; changes within them share one record
READ_TIMEOUT = 5.0  # seconds that a worker waits for the orders at the start


async def publish_status(
    settings: Settings, describe: Callable[[], WorkerStatus], changed: asyncio.Event, stopping: asyncio.Event
) -> None:
    """Publish one worker's record whenever `changed` is set and every STATUS_INTERVAL. When `stopping` and
    `changed` are set, publish the last one, if connected, and return. It has its own connection, so that
    failures do not hold up requests. A lost record is not repeated, because the next one follows soon."""
    stream, what = Topology(settings.prefix).status, "The status could not be published"

    async def publish_on(connection: Connection) -> None:
        async with opened(connection, what, confirms=True) as channel:
            while connection.is_open:
                changed.clear()
                is_last = stopping.is_set()
                record = _message(describe().to_json(), STATUS_TYPE)
                async with answered(connection, what):
                    await channel.default_exchange.publish(record, stream)
                if is_last:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STATUS_INTERVAL):
                        await changed.wait()
                    if not stopping.is_set():
                        await asyncio.sleep(CHANGES_TOGETHER)

    await keep_connected(partial(connected, settings, "status"), publish_on, lambda _: None, until=stopping)


async def read_workers(settings: Settings) -> list[WorkerStatus]:
    """The newest record of each running worker. Raises TopologyError (the stream is missing, or may not be
    read) or BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).status) as reader:
        return await read_workers_by(reader)


async def read_workers_by(reader: StreamReader, within: timedelta = SILENT_AFTER) -> list[WorkerStatus]:
    """As `read_workers`, with an open reader; of the workers that published a record `within` this time and
    have not stopped."""
    since = datetime.now(UTC) - within
    latest: dict[str, WorkerStatus] = {}
    async for entry in reader.read(since - CLOCKS_DIFFER):
        for document in entry.records:
            with contextlib.suppress(ValidationError):
                record = WorkerStatus.model_validate(document)
                latest[record.worker] = record
    return [
        latest[name]
        for name in sorted(latest)
        if latest[name].at >= since and latest[name].state != "stopped"
    ]


async def publish_order(settings: Settings, order: Order) -> None:
    """Publish an order, and return when the broker has confirmed it. Raises PublishRefused (this user may not
    give orders), TopologyError (the control stream is missing) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    what = "The order could not be published"
    async with (
        connected(settings, "control") as connection,
        opened(connection, what, confirms=True) as channel,
        answered(connection, what),
    ):
        # Through the entry exchange, whose topic permissions separate operators from publishers.
        exchange = await channel.get_exchange(names.entry, ensure=False)
        try:
            await exchange.publish(_message(order.to_json(), CONTROL_TYPE), CONTROL_KEY)
        except (PublishError, ChannelNotFoundEntity):
            raise TopologyError(
                f"No stream receives orders: {names.control} or its binding to the exchange "
                f"{names.entry} is missing. Start a worker once with OTT_DECLARE=true, or import the "
                "definitions again"
            ) from None
        except ChannelAccessRefused:
            raise PublishRefused(
                f"This user may not give orders: that needs write on the exchange {names.entry} with the "
                f"routing key {CONTROL_KEY}, a permission of operators"
            ) from None


async def read_orders(settings: Settings) -> list[Order]:
    """All orders in the stream, oldest first. Raises TopologyError (the stream is missing, or may not be
    read) or BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).control) as reader:
        return (await read_orders_by(reader))[0]


async def read_orders_by(
    reader: StreamReader, events: EventListener | None = None
) -> tuple[list[Order], int]:
    """As `read_orders`, with an open reader; and the offset after the last order."""
    orders: list[Order] = []
    following = 0
    async for entry in reader.read("first"):
        orders += _orders(entry, reader.stream, events or EventListener())
        following = entry.offset + 1
    return orders, following


class StandingOrders:
    """The pause in force. A worker reads it on a separate connection, before it consumes requests. If the
    stream is missing or forbidden, no pause is in force."""

    def __init__(self, settings: Settings, events: EventListener) -> None:
        self._settings = settings
        self._stream = Topology(settings.prefix).control
        self._events = events
        self._known = asyncio.Event()
        self._has_failed = False
        self.pause: Pause | None = None

    async def until_known(self) -> None:
        """Return when the orders are known, or after READ_TIMEOUT."""
        await pause(READ_TIMEOUT, self._known)

    async def follow(self) -> None:
        """Read the orders, until cancelled."""
        await keep_connected(partial(connected, self._settings, "orders"), self._follow, self._unreadable)

    def _unreadable(self, error: WorkerError) -> None:
        if isinstance(error, TopologyError):
            self._known.set()
        if self._has_failed:  # at the first failure, the worker may not have declared the stream yet
            self._events.control_unreadable(str(error))
        self._has_failed = True

    async def _follow(self, connection: Connection) -> None:
        reader = StreamReader(connection, self._stream, self._events)
        try:
            orders, following = await read_orders_by(reader, self._events)
            self._stands(standing_pause(orders))
            self._known.set()
            self._has_failed = False
            async with contextlib.aclosing(reader.follow(following)) as entries:
                async for entry in entries:
                    orders += _orders(entry, self._stream, self._events)
                    self._stands(standing_pause(orders))
        finally:
            self._known.clear()

    def _stands(self, pause: Pause | None) -> None:
        before, self.pause = self.pause, pause
        if pause is None and before is not None:
            self._events.resumed()
        elif pause is not None and pause != before:
            self._events.paused(pause.by, pause.why)


def _orders(entry: Entry, stream: str, events: EventListener) -> Iterator[Order]:
    for document in entry.records:
        try:
            yield Order.model_validate(document)
        except ValidationError:
            events.record_skipped(stream, entry.offset)


def whoami() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _message(body: bytes, kind: str) -> Message:
    return Message(body, content_type="application/json", delivery_mode=DeliveryMode.PERSISTENT, type=kind)
