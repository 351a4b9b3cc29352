"""The broker objects: declared when missing, only checked with OTT_DECLARE=false (contract §1)."""

import asyncio
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest
from jsonschema import Draft7Validator

from tests.rig import journal_records, messenger, until
from worker.amqp.connection import connect
from worker.broker import topology
from worker.broker.status import publish_order, read_workers
from worker.contract.schema import asyncapi
from worker.contract.status import Order
from worker.contract.words import REQUEST_KEY
from worker.errors import TopologyError
from worker.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
async def connection(make_settings: Make):
    a_connection = await connect(make_settings(), "test")
    yield a_connection
    await a_connection.close()


async def test_declaring_twice_changes_nothing(connection, make_settings):
    for _ in range(2):
        await topology.ensure(connection, make_settings())
    assert await topology.missing(connection, make_settings()) == []
    await topology.ensure(connection, make_settings(declare=False))


async def test_without_the_right_to_declare_a_missing_object_is_named(connection, make_settings, prefix):
    with pytest.raises(TopologyError, match=f"^The exchange {prefix}.dead is missing: create it"):
        await topology.ensure(connection, make_settings(declare=False))
    assert len(await topology.missing(connection, make_settings())) == 8


async def test_without_a_journal_no_stream_is_declared(connection, make_settings):
    await topology.ensure(connection, make_settings(journal=False))
    assert await topology.missing(connection, make_settings()) == [
        f"stream {topology.Topology(make_settings().prefix).journal}"
    ]


async def test_a_queue_that_differs_is_told(connection, make_settings, prefix, clean_broker):
    other = await aio_pika.connect(clean_broker)
    async with other:
        channel = await other.channel()
        await channel.declare_queue(f"{prefix}.requests", durable=True)
        with pytest.raises(TopologyError, match=f"^The queue {prefix}.requests exists but differs.*delete"):
            await topology.ensure(connection, make_settings())


async def test_a_request_that_the_queue_cannot_take_is_refused_and_not_dropped(connection, make_settings):
    names = topology.Topology(make_settings().prefix)
    for queue in (names.requests, names.replies, names.dead, names.partition(1)):
        arguments = names.arguments(queue, make_settings())
        assert arguments["x-overflow"] == "reject-publish"
        assert arguments["x-delivery-limit"] > 0
    requests = names.arguments(names.requests, make_settings())
    assert requests["x-dead-letter-strategy"] == "at-least-once"
    assert requests["x-single-active-consumer"] is True


async def test_what_is_deleted_while_workers_run_is_declared_again_and_used(rig, monkeypatch):
    """Streams, exchanges and the queues that the worker publishes to. One that it consumes ends the
    subscription, and the next one declares it."""
    monkeypatch.setattr(topology, "CHECK_INTERVAL", 0.1)
    settings = rig.settings(partitions=2)
    names = topology.Topology(settings.prefix)
    service = await rig.start_worker(settings, tells_status=True)
    requester = await rig.requester_for(settings)
    assert (await requester.ask(messenger("1")))["status"] == "registered"
    for queue in names.own_queues - {names.requests}:
        await requester.channel.queue_delete(queue)
    for exchange in (names.entry, names.dead):
        await requester.channel.exchange_delete(exchange)
    connection = await connect(settings, "test")
    for consumed in (None, names.partition(1)):
        if consumed is not None:
            await requester.channel.queue_delete(consumed)
        async with asyncio.timeout(20):
            while await topology.missing(connection, settings):
                await asyncio.sleep(0.05)
    await connection.close()
    for page in range(8):
        reply = await requester.ask(messenger(str(page)), key=REQUEST_KEY)
        assert reply["status"] == "registered"
    assert (await requester.ask(b"{", key=REQUEST_KEY))["status"] == "rejected"
    assert await requester.take("dead")
    assert {record["resourceId"] for record in await journal_records(requester, 8)} >= set("01234567")
    await until(lambda: read_workers(settings), "its status")
    await publish_order(settings, Order.now("pause", "a test", by="test"))
    await until(lambda: service.intake.subscription is None, "the pause")


async def test_a_binding_that_is_deleted_while_the_worker_runs_is_made_again(rig, monkeypatch):
    monkeypatch.setattr(topology, "CHECK_INTERVAL", 0.1)
    requester = await rig.start()
    dead = f"{requester.prefix}.dead"
    await (await requester.channel.get_queue(dead, ensure=False)).unbind(dead, "")
    assert (await requester.ask(b"{"))["status"] == "rejected"
    assert await requester.take("dead")


def validator(document: dict[str, Any], message: str, part: str = "payload") -> Draft7Validator:
    schema = document["components"]["messages"][message][part]
    return Draft7Validator({**schema, "components": document["components"]})


async def test_replies_dead_letters_and_journal_records_follow_the_document(requester):
    document = asyncapi(requester.prefix, "1.0.0")

    validator(document, "result").validate(await requester.ask(messenger()))
    dated = {"x-ott-as-of": "2026-11-23T13:00:00+01:00"}
    envelope = await requester.ask(b"{}", headers=dated)
    validator(document, "errorEnvelope").validate(envelope)
    assert envelope["asOf"] == "2026-11-23T12:00:00.000000Z"
    dead = await requester.take("dead")
    described = set(document["components"]["schemas"]["DeadLetterHeaders"]["properties"])
    assert described - {"x-ott-reduced"} <= set(dead.headers)
    headers = {name: value for name, value in dead.headers.items() if isinstance(value, str | int)}
    validator(document, "deadLetter", "headers").validate(headers)
    for record in await journal_records(requester, 2):
        validator(document, "journal").validate(record)
        described = document["components"]["schemas"]["JournalRecord"]["properties"]
        assert set(record) | {"asOf"} == set(described)
    assert (record["status"], record.get("asOf")) == ("rejected", envelope["asOf"])


async def test_other_limits_of_the_journal_do_not_stop_the_worker(connection, make_settings):
    await topology.ensure(connection, make_settings())
    await topology.ensure(connection, make_settings(journal_max_age="7D", journal_max_bytes=5_000_000))
