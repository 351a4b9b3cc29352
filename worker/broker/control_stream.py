"""The control stream: what operators order, and what they changed (contract §9, §11)."""

import asyncio
import contextlib
from collections.abc import Iterable

from pydantic import ValidationError

from worker.amqp.confirm_channel import Message, publish_once
from worker.amqp.connection import broker_errors, connect
from worker.amqp.properties import build
from worker.broker.journal_reader import Entry, JournalReader, open_stream
from worker.broker.topology import Topology
from worker.contract.control import Order, Pause, standing_pause
from worker.contract.words import CONTROL_KEY, CONTROL_TYPE
from worker.errors import PublishRefused, TopologyError, Unroutable
from worker.settings import Settings

PUBLISH_TIMEOUT = 15.0  # seconds


async def publish_order(settings: Settings, order: Order) -> None:
    """Give an order; it is confirmed by the broker when this returns. Raises PublishRefused (this user may
    give none), TopologyError (there is no control stream) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    # By the entry exchange, where topic permissions tell operators from publishers.
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


async def read_orders_by(reader: JournalReader) -> list[Order]:
    """As `read_orders`, by an open reader of the control stream."""
    orders, _ = await _read(reader)
    return orders


async def read_pause(settings: Settings) -> Pause | None:
    """The pause that stands. Raises as `read_orders`."""
    return standing_pause(await read_orders(settings))


async def _read(reader: JournalReader) -> tuple[list[Order], int]:
    """The orders so far, and the offset that comes next."""
    orders: list[Order] = []
    following = 0
    async with contextlib.aclosing(reader.read("first")) as entries:
        async for entry in entries:
            orders += _orders(entry)
            following = entry.offset + 1
    return orders, following


def _orders(entry: Entry) -> Iterable[Order]:
    for document in entry.records:
        with contextlib.suppress(ValidationError):
            yield Order.model_validate(document)
