"""A subscription ends in an awkward moment: nothing is stuck, and no late call goes on."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiormq.exceptions
import pytest

from tests.faults.proxy import Proxy
from tests.rig import WAIT_TIMEOUT, Events, Rig, declare, messenger, until
from worker.amqp import consumer
from worker.amqp.connection import Connection, RawChannel, connect
from worker.amqp.consumer import Delivery, EndReason, Subscription
from worker.amqp.ledger import Message
from worker.amqp.properties import build
from worker.amqp.publisher import Publisher
from worker.amqp.queue_browser import depth
from worker.amqp.reconnect import keep_connected
from worker.backoff import Backoff
from worker.broker import topology
from worker.broker.topology import Topology
from worker.contract.settlement import Settlement
from worker.errors import BrokerUnreachable
from worker.pipeline.journey import Journeys
from worker.pipeline.request import Outcome, Request
from worker.sandbox.faults import Latency
from worker.settings import Settings

SOON = 10  # seconds; the grace of a drain is 25
LONG = 2 * WAIT_TIMEOUT  # seconds; what lasts so long ends no test


async def test_a_call_ends_at_once_when_the_connection_is_lost_while_draining(
    rig: Rig, proxy: Proxy, clean_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, drain = asyncio.Event(), Journeys.drain

    async def noticed(journeys: Journeys, grace: float) -> None:
        begun.set()
        await drain(journeys, grace)

    monkeypatch.setattr(Journeys, "drain", noticed)
    requester = await rig.requester_for(rig.settings())
    rig.sandbox.faults.add(Latency(path="registration", seconds=LONG, count=1))
    long = {"http_timeout": LONG, "shutdown_grace": LONG}
    await rig.start_worker(rig.settings(amqp_url=proxy.url, hold_limit=0.5, **long))
    wanted = await requester.publish(messenger())
    await until(lambda: begun.is_set() and rig.sandbox.history.registration_calls, "a drain during the call")
    proxy.reset()
    assert (await requester.reply(wanted))["status"] == "registered"


@pytest.mark.parametrize(
    ("is_voting", "why"), [(True, EndReason.NO_MAJORITY), (False, EndReason.UNDELIVERABLE)]
)
async def test_why_rabbitmq_ends_a_connection_with_an_internal_error(
    rig: Rig, is_voting: bool, why: EndReason
) -> None:
    """It does so for a message that it cannot deliver, and where most of a queue's nodes do not answer."""
    connection = await connect(rig.settings(), "test")
    subscription = Subscription(connection, "queue", 1)
    if is_voting:
        connection.open_votes.add(subscription)
    error: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    error.set_exception(aiormq.exceptions.ConnectionInternalError("INTERNAL_ERROR"))
    subscription._on_closed(error)
    assert (await subscription.ended).reason is why
    await connection.close()


async def test_a_defect_while_settling_holds_nobody_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    requester = await rig.start()
    service = rig.services[0]
    settle, defects = service.tools.settler.settle, iter([True])

    async def sometimes(request: Request, outcome: Outcome) -> Settlement:
        if next(defects, False):
            raise RuntimeError("a defect")
        return await settle(request, outcome)

    monkeypatch.setattr(service.tools.settler, "settle", sometimes)
    async with asyncio.timeout(SOON):
        assert (await requester.ask(messenger()))["status"] == "registered"


async def test_a_defect_while_the_lease_is_renewed_holds_nobody_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vote, defects = Subscription._pass_through_queue, iter([True])

    async def sometimes(subscription: Subscription, channel: RawChannel, tag: str) -> None:
        if next(defects, False):
            raise KeyError("a defect")
        await vote(subscription, channel, tag)

    monkeypatch.setattr(Subscription, "_pass_through_queue", sometimes)
    monkeypatch.setattr(consumer, "LEASE", 0.5)  # seconds
    requester = await rig.start()
    subscription = await until(lambda: rig.services[0].intake.subscription, "the subscription")
    await until(lambda: time.monotonic() - subscription._lease_renewed_at > 0.5, "the end of the lease")
    async with asyncio.timeout(SOON):
        assert (await requester.ask(messenger()))["status"] == "registered"


async def test_what_a_subscription_held_that_has_ended_by_itself_comes_again_on_the_same_connection(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a partition's leader did not answer for a while."""

    async def no_answer(*_: object) -> int:
        return 0

    settings = make_settings()
    queue = Topology(settings.prefix).requests
    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    channel = await connection.raw_channel(confirms=True)
    await channel.basic_publish(b"", routing_key=queue)
    deliveries: list[Delivery] = []
    with monkeypatch.context() as patches:
        patches.setattr(Subscription, "_round_trip", no_answer)
        patches.setattr(consumer, "LEASE_TIMEOUT", 0.1)
        first = Subscription(connection, queue, 200)
        await first.open(deliveries.append)
        assert (await first.ended).reason is EndReason.SILENT
    await first.close()
    second = Subscription(connection, queue, 200)
    await second.open(deliveries.append)
    await until(lambda: second.unsettled, "the delivery")
    await second.close()
    await connection.close()


async def test_a_standby_that_is_cut_off_makes_no_call_when_deliveries_come(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a network partition, RabbitMQ 4.3 hands it what others have settled since. So its lease, too, is
    renewed only by what most nodes of the queue agree to."""
    monkeypatch.setattr(consumer, "LEASE", 1.0)  # seconds
    settings, has_majority = make_settings(), asyncio.Event()
    queue = Topology(settings.prefix).requests
    vote = Subscription._pass_through_queue

    async def with_majority(subscription: Subscription, channel: RawChannel, tag: str) -> None:
        if subscription is standby:
            await has_majority.wait()
        await vote(subscription, channel, tag)

    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    active, standby = Subscription(connection, queue, 10), Subscription(connection, queue, 10)
    await active.open(lambda _: None)
    delivered = asyncio.Event()
    monkeypatch.setattr(Subscription, "_pass_through_queue", with_majority)
    await standby.open(lambda _: delivered.set())
    await asyncio.sleep(1.5)  # the lease that it opened with is over
    channel = await connection.raw_channel(confirms=True)
    await channel.basic_publish(b"", routing_key=queue)
    await until(lambda: active.unsettled, "the delivery")
    await active.close()
    await delivered.wait()
    allowed = asyncio.create_task(standby.ensure_lease())
    assert not (await asyncio.wait([allowed], timeout=1.5))[0]
    has_majority.set()
    await asyncio.wait_for(allowed, SOON)
    await standby.close()
    await connection.close()


async def test_hundreds_acknowledged_at_the_last_moment_are_gone(
    make_settings: Callable[..., Settings], clean_broker: str
) -> None:
    """The broker's channel drops acknowledgements that it keeps back when it is closed too soon. Without
    waiting for them this fails in one round of six: requests that were answered come again."""
    settings = make_settings()
    queue = Topology(settings.prefix).requests
    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    channel = await connection.raw_channel(confirms=True)
    for _ in range(20):
        publishes = [channel.basic_publish(str(i).encode(), routing_key=queue) for i in range(200)]
        await asyncio.gather(*publishes)
        deliveries: list[Delivery] = []
        subscription = Subscription(connection, queue, 200)
        await subscription.open(deliveries.append)
        await until(lambda n=deliveries: len(n) == 200, "the deliveries")
        for delivery in deliveries[1:]:
            subscription.ack(delivery)
        await subscription.close()
        assert await until(lambda: depth(connection, queue), "what was not acknowledged") == 1
        await channel.queue_purge(queue)
    await connection.close()


async def test_a_connection_that_is_of_no_use_is_opened_less_and_less_often(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: list[float] = []
    told: list[str] = []

    async def use(_: Connection) -> None:
        raise BrokerUnreachable("The consumer could not start")

    def at_once(backoff: Backoff, failures: int) -> float:
        longest.append(backoff.ceiling(failures))
        return 0.0

    monkeypatch.setattr(Backoff, "draw", at_once)
    enough = asyncio.Event()
    keeping = asyncio.create_task(
        keep_connected(make_settings(), "test", use, lambda error: told.append(str(error)), until=enough)
    )
    await until(lambda: len(longest) >= 4, "four attempts")
    enough.set()
    await keeping
    assert longest[:4] == [0.1, 0.2, 0.4, 0.8]
    assert set(told) == {"The consumer could not start"}


async def test_a_rotated_url_file_that_holds_no_url_leaves_the_last_good_one(
    rig: Rig, clean_broker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requester = await rig.requester_for(rig.settings())
    file = tmp_path / "url"
    file.write_text(clean_broker)
    monkeypatch.setenv("OTT_AMQP_URL_FILE", str(file))
    settings = rig.settings(amqp_url=clean_broker)
    settings._given_in_code -= {"amqp_url"}
    warnings: list[tuple[str, str]] = []
    settings.warn_by(lambda name, why: warnings.append((name, why)))
    file.write_text("amqp://user:pass@host:port")
    await rig.start_worker(settings)
    assert (await requester.ask(messenger()))["status"] == "registered"
    assert {name for name, _ in warnings} == {"OTT_AMQP_URL_FILE"}
    assert not any("pass" in why for _, why in warnings)


async def test_a_publishing_channel_that_is_opened_anew_keeps_its_connection(
    make_settings: Callable[..., Settings],
) -> None:
    settings, events = make_settings(), Events()
    await declare(settings)
    publisher = Publisher(settings, events)
    publisher.start()
    await until(lambda: publisher.ready, "the publisher")
    publisher._own._stuck = True
    sent = []
    while publisher._own._stuck or not publisher.ready:
        sent += [publisher.send(Message("", f"{settings.prefix}.replies", build(), b"x")) for _ in range(20)]
        await asyncio.sleep(0.001)
    await asyncio.gather(*sent)
    assert not events.of("publisher_lost")
    await publisher.stop()


async def test_a_lease_ends_while_the_machine_is_suspended(
    make_settings: Callable[..., Settings], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock counts the suspension; no call goes out before the lease is renewed."""
    settings, queue = make_settings(), Topology(prefix).requests
    connection = await connect(settings, "test")
    await topology.ensure(connection, settings)
    subscription = Subscription(connection, queue, 1)
    await subscription.open(lambda _: None)
    await subscription.renew_lease()
    clock = consumer.lease_clock
    monkeypatch.setattr(consumer, "lease_clock", lambda: clock() + 25)
    votes, vote = [], Subscription._pass_through_queue

    async def counted(subscription: Subscription, channel: Any, tag: str) -> None:
        votes.append(tag)
        await vote(subscription, channel, tag)

    monkeypatch.setattr(Subscription, "_pass_through_queue", counted)
    await connection.raw_channel()
    async with asyncio.timeout(10):
        await subscription.ensure_lease()
    assert votes
    await subscription.close()
    await connection.close()
