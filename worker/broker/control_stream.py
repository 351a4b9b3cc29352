"""The control stream: what operators order, and what they changed (contract §9, §11)."""

import asyncio
import contextlib
import getpass
import socket
from collections.abc import Iterator

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import PublishError
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from pydantic import ValidationError

from worker.amqp.connection import Connection, answered, connected, opened
from worker.amqp.reconnect import keep_connected
from worker.amqp.stream_reader import Entry, StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.status import Order, Pause, standing_pause
from worker.contract.words import CONTROL_KEY, CONTROL_TYPE
from worker.errors import PublishRefused, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

READ_TIMEOUT = 5.0  # seconds that a worker waits for the orders before it begins without them


async def publish_order(settings: Settings, order: Order) -> None:
    """Give an order; it is confirmed by the broker when this returns. Raises PublishRefused (this user may
    give none), TopologyError (there is no control stream) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    message = Message(
        order.to_json(),
        content_type="application/json",
        delivery_mode=DeliveryMode.PERSISTENT,
        type=CONTROL_TYPE,
    )
    what = "The order could not be published"
    async with (
        connected(settings, "control") as connection,
        opened(connection, what, confirms=True) as channel,
        answered(connection, what),
    ):
        # Through the entry exchange, whose topic permissions tell operators from publishers.
        exchange = await channel.get_exchange(names.entry, ensure=False)
        try:
            await exchange.publish(message, CONTROL_KEY)
        except (PublishError, ChannelNotFoundEntity):
            raise TopologyError(
                f"Nothing takes orders: the stream {names.control} or its binding to the exchange "
                f"{names.entry} is missing. Start a worker once with OTT_DECLARE=true, or import the "
                "definitions again"
            ) from None
        except ChannelAccessRefused:
            raise PublishRefused(
                f"This user may give no orders: it needs to write to the exchange {names.entry} with the "
                f"routing key {CONTROL_KEY}, which is an operator's right"
            ) from None


async def read_orders(settings: Settings) -> list[Order]:
    """All orders that are kept, the oldest first. Raises TopologyError (there is no such stream, or it may
    not be read) or BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).control) as reader:
        return await read_orders_by(reader)


async def read_orders_by(reader: StreamReader) -> list[Order]:
    """As `read_orders`, by an open reader of the control stream."""
    orders, _ = await _read(reader, EventListener())
    return orders


async def read_pause(settings: Settings) -> Pause | None:
    """The pause that stands. Raises as `read_orders`."""
    return standing_pause(await read_orders(settings))


class StandingOrders:
    """The pause that is in force, as a worker knows it. It is read on a connection of its own, before the
    worker takes requests. If the stream is missing or forbidden, no pause is in force."""

    def __init__(self, settings: Settings, events: EventListener) -> None:
        self._settings = settings
        self._stream = Topology(settings.prefix).control
        self._events = events
        self._known = asyncio.Event()
        self._has_failed = False
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.pause: Pause | None = None

    async def until_known(self) -> None:
        """Return when the orders in force are known, or cannot be read for now."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_TIMEOUT):
                await self._known.wait()

    async def until_resumed(self) -> None:
        """Return when no pause stands."""
        await self._resumed.wait()

    async def follow(self) -> None:
        """Read the orders, until cancelled."""
        await keep_connected(self._settings, "orders", self._follow, self._unreadable)

    def _unreadable(self, error: WorkerError) -> None:
        if isinstance(error, TopologyError):
            self._known.set()
        if self._has_failed:  # the first time the worker may not have declared it yet
            self._events.control_unreadable(str(error))
        self._has_failed = True

    async def _follow(self, connection: Connection) -> None:
        reader = StreamReader(connection, self._stream, self._events)
        try:
            orders, following = await _read(reader, self._events)
            self._stands(standing_pause(orders))
            self._known.set()
            self._has_failed = False
            async with contextlib.aclosing(reader.follow(following)) as entries:
                async for entry in entries:
                    for order in _orders(entry, self._stream, self._events):
                        if order.order in ("pause", "resume"):
                            self._stands(standing_pause([order]))
        finally:
            self._known.clear()

    def _stands(self, pause: Pause | None) -> None:
        before, self.pause = self.pause, pause
        if pause is None:
            self._resumed.set()
            if before is not None:
                self._events.resumed()
        else:
            self._resumed.clear()
            if pause != before:
                self._events.paused(pause.by, pause.why)


async def _read(reader: StreamReader, events: EventListener) -> tuple[list[Order], int]:
    """The orders so far, and the offset that comes next."""
    orders: list[Order] = []
    following = 0
    async for entry in reader.read("first"):
        orders += _orders(entry, reader.stream, events)
        following = entry.offset + 1
    return orders, following


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
