"""The broker itself is killed, restarted, filled up and told to refuse: nothing is lost."""

from base64 import b64encode
from datetime import timedelta
from uuid import uuid4

import aio_pika
import pytest

from tests.commands import checked_with
from tests.faults.faults import FAULTS, LIMITED, limited_user, short_consumer_timeout
from tests.faults.load import QUORUM, Sent, wait_for
from tests.faults.world import World, endure
from tests.rig import Requester, declare, delete_objects, until
from worker import contract
from worker.contract.status import STATUS_INTERVAL
from worker.errors import BrokerUnreachable
from worker.partitions.pruning import prune
from worker.settings import load_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

RATE = 150  # requests a second
LARGEST = 200_000  # bytes of a message, where a test says so


@pytest.fixture
def world(own_world: World) -> World:
    own_world.fresh()
    return own_world


@pytest.mark.parametrize(
    "name", ["broker restart", "broker kill -9", "memory alarm (blocked)", "reply queue full"]
)
async def test_a_broker_that_goes_away_or_takes_nothing_loses_nothing(world, name):
    await endure(world, FAULTS[name], 200, strikes=1, rate=RATE)
    await world.intact()


async def test_an_alarm_is_the_cause_that_check_tells(world, monkeypatch):
    """The workers run, but none of their records comes."""
    monkeypatch.setattr(contract.status, "SILENT_AFTER", timedelta(seconds=STATUS_INTERVAL + 1))
    variables = {"OTT_AMQP_URL": world.url, "OTT_PREFIX": world.prefix}
    await world.node.ctl("set_vm_memory_high_watermark", "0.00001")
    try:

        async def is_told() -> bool:
            checked = await checked_with(variables)
            alarm = "memory or disk alarm" in checked.failure("permissions")
            return alarm and "has a consumer nevertheless" in checked.line("workers")

        await until(is_told, "the alarm")
    finally:
        await world.node.ctl("set_vm_memory_high_watermark", "0.6")


async def test_a_consumer_that_the_broker_cancels_subscribes_again_and_declares_its_queue(world):
    """The queue is deleted: the broker cancels its consumers, and what was in it is the operator's loss."""
    ended = world.workers.told("subscription_ended")
    await world.load.publish(world.plan(50))
    await world.drained()
    await world.node.ctl("delete_queue", f"{world.prefix}.requests")
    await world.load.publish(world.plan(50))
    await world.drained()
    await world.intact()
    assert world.workers.told("subscription_ended") > ended


async def test_a_full_dead_queue_holds_back_the_refused_requests_and_no_others(world):
    await world.limit("dead", 1)
    good, bad = world.plan(60, invalid=0), world.plan(5, invalid=1)
    await world.load.publish([*bad, *good])
    await wait_for(lambda: len(world.load.answered) >= 60, "the replies to the good ones")
    await world.no_limits()
    await world.drained()
    await world.intact()


async def test_a_reply_to_that_never_confirms_is_given_up_and_stops_nobody(make_world, node):
    """A quorum queue without a leader, as RabbitMQ leaves one that was declared right before a crash."""
    name = f"test.{uuid4().hex[:12]}.leaderless"
    await node.flush()
    async with await aio_pika.connect(node.url) as connection:
        await (await connection.channel()).declare_queue(name, durable=True, arguments=QUORUM)
        await node.crash()
    await node.start()
    # The broker looks for a leader each time, and takes its time for that.
    few = {"FAULTS_CLOCKS": "worker.amqp.confirm_channel.CONFIRM_TIMEOUT=1", "OTT_PREFETCH": "10"}
    world = await make_world(node, environment=few)
    await world.load.publish(world.plan(15), reply_to=name)
    await world.load.publish(world.plan(50))
    await world.drained()
    world.strikes = 1  # the channel stands still while it looks for the leader; other confirms are late too
    await world.intact(last=True)


async def test_a_partition_whose_leader_does_not_answer_is_not_pruned(node, monkeypatch):
    """RabbitMQ reports that it is empty."""
    monkeypatch.setattr("worker.amqp.connection.ANSWER_TIMEOUT", 2.0)
    settings = load_settings(amqp_url=node.url, prefix=f"test.{uuid4().hex[:12]}", partitions=2)
    queue = f"{settings.prefix}.requests.2"
    await declare(settings)
    async with Requester(node.url, settings.prefix) as requester:
        await requester.channel.default_exchange.publish(aio_pika.Message(b"{}"), queue)
        await node.evaluate(f"sys:suspend('%2F_{queue}').")
        with pytest.raises(BrokerUnreachable, match="could not be looked at"):
            [each async for each in prune(load_settings(amqp_url=node.url, prefix=settings.prefix))]
        await node.evaluate(f"sys:resume('%2F_{queue}').")
        await until(lambda: requester.holds("requests.2", {1}), "the message, which is still there")
    await delete_objects(node.url, settings.prefix)


async def test_a_message_larger_than_the_broker_takes_stops_no_other(make_world, node):
    """A body that was let in, and has grown by being encrypted."""
    await node.evaluate(f"application:set_env(rabbit, max_message_size, {LARGEST}).")
    try:
        key = f"one:{b64encode(bytes(32)).decode()}"
        limits = {"OTT_DEAD_LETTER_KEYS": key, "OTT_MAX_BODY_BYTES": str(LARGEST), "OTT_SHUTDOWN_GRACE": "0"}
        world = await make_world(node, environment=limits)
        large = Sent("large", b"x" * (LARGEST - 1), None, None)
        await world.load.publish([large])
        await wait_for(lambda: world.load.answered, "the reply to the large one")
        others = world.plan(100, invalid=0.5)
        await world.load.publish(others)
        await wait_for(lambda: {s.id for s in others} <= world.load.answered, "the others' replies")
        await wait_for(lambda: world.wiretap.unsettled == 1, "all but the large one to be acknowledged")
    finally:
        await node.evaluate("application:unset_env(rabbit, max_message_size).")


async def test_a_consumer_timeout_gives_the_deliveries_back_and_never_returns_one_of_them_alone(
    make_world, node
):
    """RabbitMQ 4.3 would return the oldest one alone, while the worker holds the others. There the time-out
    that the worker asks for counts, which it never comes to. Before, all deliveries come back together."""
    fault = FAULTS["consumer timeout"]
    world = await make_world(node, workers=0, environment=fault.environment)
    major, minor, *_ = (await node.ctl("version")).split(".")
    async with short_consumer_timeout(world):
        await world.start(2)
        await endure(world, fault, 100, strikes=1, rate=RATE)
        assert bool(world.workers.told("subscription_ended")) == ((int(major), int(minor)) < (4, 3))
        await world.intact(last=True)


async def test_permission_to_reply_that_is_taken_away_for_a_while_delays_replies_and_loses_none(
    make_world, node
):
    world = await make_world(node, workers=0, user=LIMITED)
    async with limited_user(world):
        await world.start(2)
        await endure(world, FAULTS["no permission for the reply queue"], 150, strikes=1, rate=RATE)
        await world.intact(last=True)
