"""The streams by which workers tell what they do and operators order (contract §9)."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import aio_pika
import pytest

from tests.rig import until, worker_status
from worker.amqp.connection import Connection
from worker.amqp.stream_reader import StreamReader
from worker.broker.status import publish_order, publish_status, read_orders, read_workers
from worker.broker.topology import Topology
from worker.contract.status import SILENT_AFTER, Order, WorkerStatus, standing_pause
from worker.errors import TopologyError
from worker.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
def settings(make_settings: Make, connection: Connection) -> Settings:
    return make_settings()


async def publish(settings: Settings, *records: WorkerStatus) -> None:
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        for record in records:
            message = aio_pika.Message(record.to_json())
            await channel.default_exchange.publish(message, f"{settings.prefix}.status")


async def test_the_newest_record_of_each_worker_counts(settings):
    await publish(settings, worker_status("a"), worker_status("b"), worker_status("a", in_flight=7))
    assert [(each.worker, each.in_flight) for each in await read_workers(settings)] == [("a", 7), ("b", 0)]


async def test_a_worker_that_has_fallen_silent_is_left_out(settings):
    long_ago = datetime.now(UTC) - SILENT_AFTER - timedelta(seconds=1)
    await publish(settings, worker_status("gone", at=long_ago), worker_status("alive"))
    assert [each.worker for each in await read_workers(settings)] == ["alive"]


async def test_a_worker_is_found_behind_many_records_of_another_one(settings):
    await publish(settings, worker_status("quiet"), *(worker_status("busy", in_flight=i) for i in range(500)))
    assert [(each.worker, each.in_flight) for each in await read_workers(settings)] == [
        ("busy", 499),
        ("quiet", 0),
    ]


async def test_a_change_is_published_at_once(settings):
    in_flight = 1
    changed = asyncio.Event()
    describe = lambda: worker_status("alive", in_flight=in_flight)  # noqa: E731
    task = asyncio.create_task(publish_status(settings, describe, changed, asyncio.Event()))
    try:
        await until(lambda: _in_flight(settings, 1), "the first record")
        in_flight = 2
        changed.set()
        async with asyncio.timeout(4):  # less than the interval between records
            await until(lambda: _in_flight(settings, 2), "the record of the change")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _in_flight(settings: Settings, count: int) -> bool:
    return [each.in_flight for each in await read_workers(settings)] == [count]


async def test_a_missing_status_stream_disturbs_no_publisher(make_settings):
    publishing = publish_status(make_settings(), worker_status, asyncio.Event(), asyncio.Event())
    task = asyncio.create_task(publishing)
    await asyncio.sleep(0.3)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(TopologyError, match="status is missing"):
        await read_workers(make_settings())


def test_a_status_has_the_names_of_the_contract():
    document = json.loads(worker_status().to_json())
    names = "worker version at state partitions gate paused blocked pace inFlight ratePerSecond reconnects"
    assert list(document) == names.split()
    assert document["partitions"] == []
    assert document["gate"] == {"state": "open", "why": None, "since": None}
    assert (document["blocked"], document["pace"]) == ([], None)


async def test_the_last_pause_or_resume_stands_whatever_is_recorded_after_it(settings):
    await publish_order(settings, Order.now("pause", "rotating secrets", by="ann@host"))
    await publish_order(settings, Order.now("replayed", "mended", by="bob@host", count=3))
    pause = standing_pause(await read_orders(settings))
    assert pause is not None
    assert (pause.by, pause.why) == ("ann@host", "rotating secrets")
    await publish_order(settings, Order.now("resume", "", by="ann@host"))
    assert standing_pause(await read_orders(settings)) is None
    assert [(order.order, order.count) for order in await read_orders(settings)] == [
        ("pause", None),
        ("replayed", 3),
        ("resume", None),
    ]


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_only_what_was_published_with_the_key_control_is_an_order(settings, header):
    await publish_order(settings, Order.now("pause", "a reason", by="ann@host"))
    forged = Order.now("resume", "forged", by="ann@host").to_json()
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        entry = await channel.get_exchange(settings.prefix)
        await entry.publish(aio_pika.Message(forged, headers={header: ["control"]}), "request")
        await channel.default_exchange.publish(aio_pika.Message(forged), f"{settings.prefix}.control")
    assert [order.order for order in await read_orders(settings)] == ["pause"]


async def test_an_order_without_a_control_stream_says_what_to_do(make_settings):
    with pytest.raises(TopologyError, match=r"No stream receives orders: .* Start a worker once"):
        await publish_order(make_settings(), Order.now("pause", "why", by="ann@host"))


def test_an_order_has_the_names_of_the_contract():
    document = json.loads(Order.now("pause", "why", by="ann@host").to_json())
    assert list(document) == ["order", "by", "why", "at"]
    assert json.loads(Order.now("discarded", "why", by="ann@host", count=2).to_json())["count"] == 2


async def test_a_stream_that_is_written_to_all_the_time_never_looks_empty(settings, connection):
    async def write() -> None:
        while True:
            await publish(settings, *[worker_status()] * 50)

    await publish(settings, worker_status())
    writing = asyncio.create_task(write())
    try:
        reader = StreamReader(connection, Topology(settings.prefix).status)
        for _ in range(40):
            assert await reader.last() is not None
            assert await reader.first() is not None
    finally:
        writing.cancel()


async def test_what_is_no_status_does_not_disturb_the_reader(settings):
    connection = await aio_pika.connect(settings.amqp_url.get_secret_value())
    async with connection:
        channel = await connection.channel()
        for body in (b"\xff", b"[]", b'{"worker": "x"}'):
            await channel.default_exchange.publish(aio_pika.Message(body), f"{settings.prefix}.status")
    await publish(settings, worker_status("alive"))
    assert [each.worker for each in await read_workers(settings)] == ["alive"]
