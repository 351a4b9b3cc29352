"""The control stream: what operators order, and what they changed (contract §9, §11)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from pydantic import ValidationError

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Connection, connect
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import publish_once
from worker.amqp.stream_reader import Entry, StreamReader, open_stream
from worker.broker.topology import Topology
from worker.contract.control import Order, Pause, standing_pause
from worker.contract.words import CONTROL_KEY, CONTROL_TYPE
from worker.errors import BrokerUnreachable, PublishRefused, TopologyError, Unroutable
from worker.events import EventListener
from worker.settings import Settings

PUBLISH_TIMEOUT = 15.0  # seconds
READ_TIMEOUT = 5.0  # seconds that a worker waits for the orders before it begins without them
RETRY_INTERVAL = 5.0  # seconds between attempts to read on


async def publish_order(settings: Settings, order: Order) -> None:
    """Give an order; it is confirmed by the broker when this returns. Raises PublishRefused (this user may
    give none), TopologyError (there is no control stream) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    # Through the entry exchange, whose topic permissions tell operators from publishers.
    properties = build(content_type="application/json", type=CONTROL_TYPE)
    message = Message(names.entry, CONTROL_KEY, properties, order.to_json(), external=True)
    connection = await connect(settings, "control")
    try:
        with broker_errors("The order could not be published"):
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                await publish_once(connection, message)
    except Unroutable:
        raise TopologyError(
            f"Nothing takes orders: the stream {names.control} or its binding to the exchange {names.entry} "
            "is missing. Start a worker once with OTT_DECLARE=true, or import the definitions again"
        ) from None
    except PublishRefused:
        raise PublishRefused(
            f"This user may give no orders: it needs to write to the exchange {names.entry} with the "
            f"routing key {CONTROL_KEY}, which is an operator's right"
        ) from None
    finally:
        await connection.close()


async def read_orders(settings: Settings) -> list[Order]:
    """All orders that are kept, the oldest first. Raises TopologyError (there is no such stream, or it may
    not be read) or BrokerUnreachable."""
    async with open_stream(settings, Topology(settings.prefix).control) as reader:
        return await read_orders_by(reader)


async def read_orders_by(reader: StreamReader) -> list[Order]:
    """As `read_orders`, by an open reader of the control stream."""
    orders, _ = await _read(reader)
    return orders


async def read_pause(settings: Settings) -> Pause | None:
    """The pause that stands. Raises as `read_orders`."""
    return standing_pause(await read_orders(settings))


class StandingOrders:
    """The pause that is in force, as a worker knows it. The worker reads it before it takes requests, then
    follows the stream on its consuming connection. If the stream is missing or forbidden, no pause is in
    force."""

    def __init__(self, settings: Settings, events: EventListener) -> None:
        self._stream = Topology(settings.prefix).control
        self._events = events
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.pause: Pause | None = None

    async def until_resumed(self) -> None:
        """Return when no pause stands."""
        await self._resumed.wait()

    @contextlib.asynccontextmanager
    async def followed(self, connection: Connection) -> AsyncIterator[None]:
        """Read the orders in force, and follow new ones while the context lasts. Never raises."""
        known = asyncio.Event()
        task = asyncio.create_task(self._follow(connection, known), name="orders")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_TIMEOUT):
                    await known.wait()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, connection: Connection, known: asyncio.Event) -> None:
        reader = StreamReader(connection, self._stream)
        while True:
            try:
                orders, following = await _read(reader)
                self._stands(standing_pause(orders))
                known.set()
                async with contextlib.aclosing(reader.follow(following)) as entries:
                    async for entry in entries:
                        for order in _orders(entry):
                            if order.order in ("pause", "resume"):
                                self._stands(standing_pause([order]))
            except (BrokerUnreachable, TopologyError) as error:
                known.set()
                if connection.is_open:
                    self._events.control_unreadable(str(error))
            await asyncio.sleep(RETRY_INTERVAL)

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


async def _read(reader: StreamReader) -> tuple[list[Order], int]:
    """The orders so far, and the offset that comes next."""
    orders: list[Order] = []
    following = 0
    async with contextlib.aclosing(reader.read("first")) as entries:
        async for entry in entries:
            orders += _orders(entry)
            following = entry.offset + 1
    return orders, following


def _orders(entry: Entry) -> Iterable[Order]:
    """The orders of an entry: none where a publisher's `CC` header, which RabbitMQ before 4.0 does not check,
    brought a message here that was published with another routing key."""
    if entry.routing_key != CONTROL_KEY:
        return
    for document in entry.records:
        with contextlib.suppress(ValidationError):
            yield Order.model_validate(document)
