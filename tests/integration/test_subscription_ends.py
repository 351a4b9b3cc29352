"""A subscription ends in an awkward moment: nothing is stuck, and no late call goes on."""

import asyncio
import time
from typing import Any

from tests.rig import WAIT_TIMEOUT, declare, messenger, until
from tests.sandbox_faults import Latency
from worker.amqp import consumer
from worker.amqp.connection import RawChannel
from worker.amqp.consumer import Delivery, EndReason, Subscription
from worker.amqp.queue import depth
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable
from worker.partitions import worker as partitions
from worker.pipeline.journey import Journeys

SOON = 10  # seconds; the grace of a drain is 25
LONG = 2 * WAIT_TIMEOUT  # seconds; what lasts so long ends no test


async def test_a_call_ends_at_once_when_the_connection_is_lost_while_draining(
    rig, proxy, clean_broker, monkeypatch
):
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


async def test_a_defect_while_the_lease_is_renewed_holds_nobody_up(rig, monkeypatch):
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


async def test_a_broker_that_does_not_answer_at_a_take_over_is_no_defect(rig, monkeypatch):
    answers = iter([True, False])  # while connecting, and before the first request

    async def sometimes(*_: object) -> bool:
        if not next(answers, True):
            raise BrokerUnreachable("RabbitMQ does not answer")
        return False

    monkeypatch.setattr(partitions, "exists", sometimes)
    requester = await rig.requester_for(rig.settings())
    await declare(rig.settings())
    wanted = await requester.publish(messenger())
    await rig.start_worker(rig.settings())
    assert (await requester.reply(wanted))["status"] == "registered"
    assert [why for _, why in rig.events.of("returned")] == ["RabbitMQ does not answer"]
    assert not rig.events.of("processing_failed")


async def test_what_a_subscription_held_that_has_ended_by_itself_comes_again_on_the_same_connection(
    connection, prefix, monkeypatch
):
    """As where a partition's leader did not answer for a while."""

    async def no_answer(*_: object) -> int:
        return 0

    queue = Topology(prefix).requests
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


async def test_a_standby_that_is_cut_off_makes_no_call_when_deliveries_come(connection, prefix, monkeypatch):
    """After a network partition, RabbitMQ 4.3 hands it what others have settled since. So its lease, too, is
    renewed only by what most nodes of the queue agree to."""
    monkeypatch.setattr(consumer, "LEASE", 1.0)  # seconds
    monkeypatch.setattr(consumer, "LEASE_RENEWAL_INTERVAL", 0.2)  # seconds
    queue, has_majority = Topology(prefix).requests, asyncio.Event()
    vote = Subscription._pass_through_queue

    async def with_majority(subscription: Subscription, channel: RawChannel, tag: str) -> None:
        if subscription is standby:
            await has_majority.wait()
        await vote(subscription, channel, tag)

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


async def test_hundreds_acknowledged_at_the_last_moment_are_gone(connection, prefix):
    """The broker's channel drops acknowledgements that it keeps back when it is closed too soon. Without
    waiting for them this fails in one round of six: requests that were answered come again."""
    queue = Topology(prefix).requests
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


async def test_a_lease_ends_while_the_machine_is_suspended(connection, prefix, monkeypatch):
    """Its clock counts the suspension; no call goes out before the lease is renewed."""
    queue = Topology(prefix).requests
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
