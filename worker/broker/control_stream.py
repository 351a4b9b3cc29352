"""The control stream: what operators order, and what they changed (contract §9, §11)."""

import asyncio
import contextlib
from collections.abc import Iterable

import aiormq.exceptions
from aiormq import spec
from pydantic import ValidationError

from worker.amqp.connection import Connection, broker_errors, connect
from worker.broker.journal_reader import Entry, JournalReader, open_stream
from worker.broker.topology import Topology
from worker.contract.control import Order, Pause, standing_pause
from worker.contract.words import CONTROL_KEY, CONTROL_TYPE
from worker.errors import PublishRefused, TopologyError
from worker.settings import Settings

PUBLISH_TIMEOUT = 15.0  # seconds


async def publish_order(settings: Settings, order: Order) -> None:
    """Give an order; it is confirmed by the broker when this returns. Raises PublishRefused (this user may
    give none), TopologyError (there is no control stream) or BrokerUnreachable."""
    names = Topology(settings.prefix)
    connection = await connect(settings, "control")
    try:
        with broker_errors("The order could not be published"):
            async with asyncio.timeout(PUBLISH_TIMEOUT):
                is_taken = await _publish(connection, names.entry, order)
    finally:
        await connection.close()
    if not is_taken:
        raise TopologyError(
            f"Nothing takes orders: the stream {names.control} or its binding to the exchange {names.entry} "
            "is missing. Start a worker once with OTT_DECLARE=true, or import the definitions again"
        )


async def _publish(connection: Connection, exchange: str, order: Order) -> bool:
    """Publish by the entry exchange, where topic permissions tell operators from publishers. False where no
    queue took it."""
    properties = spec.Basic.Properties(
        content_type="application/json", delivery_mode=2, message_type=CONTROL_TYPE
    )
    channel = await connection.channel(confirms=True)
    try:
        answer = await channel.basic_publish(
            order.to_json(),
            exchange=exchange,
            routing_key=CONTROL_KEY,
            properties=properties,
            mandatory=True,
        )
    except aiormq.exceptions.ChannelNotFoundEntity:
        return False
    except aiormq.exceptions.ChannelAccessRefused:
        raise PublishRefused(
            f"This user may give no orders: it needs to write to the exchange {exchange} with the "
            f"routing key {CONTROL_KEY}, which is an operator's right"
        ) from None
    return isinstance(answer, spec.Basic.Ack)


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
