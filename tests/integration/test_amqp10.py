"""Messages that RabbitMQ takes by AMQP 1.0 and cannot deliver by AMQP 0-9-1."""

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.integration.amqp10 import UNDELIVERABLE, publish, publish_with_uuid
from tests.rig import declare, messenger, until
from worker.amqp.connection import connect
from worker.amqp.queue import QueueBrowser
from worker.broker import topology
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable
from worker.settings import Settings


@pytest.fixture(autouse=True)
async def _speaks_amqp10(make_settings: Callable[..., Settings]) -> None:
    connection = await connect(make_settings(), "test")
    await connection.close()
    if int(connection.server_version.split(".")[0]) < 4:
        pytest.skip("RabbitMQ speaks AMQP 1.0 by itself from 4.0 on")


async def test_a_message_that_cannot_be_delivered_stops_no_other_and_ends_among_the_dead(rig, monkeypatch):
    monkeypatch.setattr(topology, "DELIVERY_LIMIT", 15)
    requester = await rig.requester_for(rig.settings())
    await declare(rig.settings())
    names = [f"{number:02d}" for number in range(40)]
    for name in names:
        await requester.publish(messenger("1", name))
        if name == "05":
            url = rig.settings().amqp_url.get_secret_value()
            await asyncio.to_thread(publish_with_uuid, url, f"{requester.prefix}.requests", b"{}")
    await rig.start_worker(rig.settings(prefetch=10))
    await until(lambda: len(requester.order) >= len(names), "all other replies")
    assert list(dict.fromkeys(rig.names_called)) == names
    assert rig.names_called[-1] == names[-1]
    await until(lambda: requester.depth("dead"), "the dead letter")
    assert await requester.depth("dead") == 1


@pytest.mark.parametrize("partitions", [1, 3])
async def test_nobody_waits_long_for_messages_that_cannot_be_delivered(rig, partitions):
    """Their deliveries, up to a limit of 1,000, are used up at once."""
    requester = await rig.start(partitions=partitions)
    assert (await requester.ask(messenger()))["status"] == "registered"
    url, queue = rig.settings().amqp_url.get_secret_value(), f"{requester.prefix}.requests"
    began, wanted = time.monotonic(), []
    for number in range(30):
        wanted.append(await requester.publish(messenger(str(number))))
        if number % 10 == 5:
            await asyncio.to_thread(publish_with_uuid, url, queue, b"%d" % number)
    async with asyncio.timeout(15):
        await requester.all_registered(wanted)
        await until(lambda: requester.holds("dead", [3]), "the dead letters")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("sections", UNDELIVERABLE.values(), ids=UNDELIVERABLE)
async def test_whatever_keeps_a_message_from_being_delivered_is_found(rig, sections):
    requester = await rig.requester_for(rig.settings())
    await declare(rig.settings())
    url, queue = rig.settings().amqp_url.get_secret_value(), f"{requester.prefix}.requests"
    await asyncio.to_thread(publish, url, queue, b"{}", {}, sections)
    wanted = [await requester.publish(messenger(str(number))) for number in range(3)]
    await asyncio.to_thread(publish, url, queue, b"{}", {}, sections)
    async with asyncio.timeout(20):
        await rig.start_worker(rig.settings())
        await requester.all_registered(wanted)
        await until(lambda: requester.holds("dead", [2]), "the dead letters")


async def test_a_dead_letter_that_cannot_be_delivered_is_told_after_those_before_it(
    make_settings, clean_broker, prefix
):
    settings, queue = make_settings(), Topology(prefix).dead
    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    channel = await connection.raw_channel(confirms=True)
    for number in range(3):
        await channel.basic_publish(b"%d" % number, routing_key=queue)
    await asyncio.to_thread(publish_with_uuid, clean_broker, queue, b"3")
    seen: list[bytes] = []

    async def look() -> None:
        async with QueueBrowser(connection, queue) as browser:
            async for delivery in browser.look(10):
                seen.append(delivery.body)  # noqa: PERF401 - kept although the look fails

    with pytest.raises(BrokerUnreachable, match=f"Message 4 of {queue} and those behind it cannot be read"):
        await look()
    assert seen == [b"0", b"1", b"2"]
    await connection.close()
