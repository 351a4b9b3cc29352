"""The broker objects: declared when missing, only checked with OTT_DECLARE=false (contract §1)."""

from collections.abc import Callable

import aio_pika
import pytest

from worker.amqp.connection import Connection, connect
from worker.broker import topology
from worker.errors import TopologyError
from worker.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
async def connection(make_settings: Make):
    a_connection = await connect(make_settings(), "test")
    yield a_connection
    await a_connection.close()


async def test_declaring_twice_changes_nothing(connection: Connection, make_settings: Make) -> None:
    for _ in range(2):
        await topology.ensure(connection, make_settings())
    assert await topology.missing(connection, make_settings()) == []
    await topology.ensure(connection, make_settings(declare=False))


async def test_without_the_right_to_declare_a_missing_object_is_named(
    connection: Connection, make_settings: Make, prefix: str
) -> None:
    with pytest.raises(TopologyError, match=f"^The exchange {prefix}.dead is missing: create it"):
        await topology.ensure(connection, make_settings(declare=False))
    assert len(await topology.missing(connection, make_settings())) == 8


async def test_without_a_journal_no_stream_is_declared(connection: Connection, make_settings: Make) -> None:
    await topology.ensure(connection, make_settings(journal=False))
    assert await topology.missing(connection, make_settings()) == [
        f"stream {topology.Topology(make_settings().prefix).journal}"
    ]


async def test_a_queue_that_differs_is_told(
    connection: Connection, make_settings: Make, prefix: str, clean_broker: str
) -> None:
    other = await aio_pika.connect(clean_broker)
    async with other:
        channel = await other.channel()
        await channel.declare_queue(f"{prefix}.requests", durable=True)
        with pytest.raises(TopologyError, match=f"^The queue {prefix}.requests exists but differs"):
            await topology.ensure(connection, make_settings())


async def test_other_limits_of_the_journal_do_not_stop_the_worker(
    connection: Connection, make_settings: Make
) -> None:
    await topology.ensure(connection, make_settings())
    await topology.ensure(connection, make_settings(journal_max_age="7D", journal_max_bytes=5_000_000))


async def test_a_request_that_the_queue_cannot_take_is_refused_and_not_dropped(
    connection: Connection, make_settings: Make
) -> None:
    names = topology.Topology(make_settings().prefix)
    for arguments in (names.requests_arguments(), names.replies_arguments(), names.dead_arguments()):
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-delivery-limit"] > 0
    assert names.requests_arguments()["x-dead-letter-strategy"] == "at-least-once"
    assert names.requests_arguments()["x-single-active-consumer"] is True
