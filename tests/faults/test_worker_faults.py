"""Workers are killed, frozen and told to stop at every await of the journey: nothing is lost or overtaken."""

import asyncio
import signal
import time

import pytest

from tests.faults.faults import FAULTS, HEARTBEAT, PARTITIONED, few_deliveries
from tests.faults.load import wait_for
from tests.faults.workers import Stop
from tests.faults.world import POISON, endure, wait_for_letter
from tests.sandbox_faults import Latency
from worker.cli.run import LAST_GRACE

pytestmark = pytest.mark.asyncio(loop_scope="module")

JOURNEY = ("received", "validated", "token-asked", "request-sent", "response-read")
JOURNEY += ("reply-published", "confirmed", "acked")
FAIL_OVER = 5.0  # seconds until the standby's first reply; about one on a quiet machine


async def test_kill_9_at_each_await_of_the_journey_loses_nothing(make_world, broker_url):
    world = await make_world(broker_url, workers=0)
    doomed = await asyncio.gather(*(world.workers.start(Stop(point, 10)) for point in JOURNEY))
    await world.start(1)
    await world.load.publish(world.plan(40 * len(JOURNEY)))
    for worker in doomed:
        await asyncio.wait_for(worker.process.wait(), 30)
        world.struck()
    await world.drained()
    assert {worker.process.returncode for worker in doomed} == {-signal.SIGKILL}
    await world.intact(last=True)


async def test_kill_9_at_random_moments_loses_nothing_and_the_standby_answers_within_seconds(
    make_world, broker_url
):
    world = await make_world(broker_url)
    await endure(world, FAULTS["kill -9"], 300, strikes=2, rate=150)
    await world.intact(last=True)
    assert world.recoveries
    assert max(world.recoveries) < FAIL_OVER


async def test_sigterm_in_mid_flight_drains_without_a_repeat(make_world, broker_url):
    world = await make_world(broker_url)
    await endure(world, FAULTS["SIGTERM"], 200, strikes=1, rate=150)
    ended = [worker for worker in world.workers.all if not worker.runs]
    findings = await world.intact(last=True)
    assert {worker.process.returncode for worker in ended} == {0}
    assert findings.duplicates == 0


async def test_a_drain_ends_though_a_task_cannot_be_cancelled(make_world, broker_url):
    world = await make_world(broker_url, workers=0)
    deaf = await world.workers.start(OTT_SHUTDOWN_GRACE="1", FAULTS_DEAF="true")
    began = time.monotonic()
    deaf.interrupt()
    assert await asyncio.wait_for(deaf.process.wait(), 60) == 1
    assert time.monotonic() - began < 1 + LAST_GRACE + FAIL_OVER


async def test_a_frozen_worker_that_wakes_up_makes_no_late_call(make_world, broker_url):
    """It stops between the decision to call and the call itself, the worst moment there is."""
    world = await make_world(broker_url, workers=0, heartbeat=HEARTBEAT)
    points = ("before-the-call", "connecting")
    zombies = [await world.workers.start(Stop(point, 15, "STOP")) for point in points]
    await world.start(1)
    load = asyncio.create_task(world.load.publish(world.plan(600, resources=30), rate=40))
    for zombie in zombies:
        await wait_for(lambda zombie=zombie: zombie.is_frozen, "the freeze", 30)
        world.struck()
        frozen_at = time.time()
        await world.load.reply_after(frozen_at + 0.5)
        calls = len(world.sandbox.history)
        await wait_for(lambda calls=calls: len(world.sandbox.history) > calls + 30, "the standby's calls", 30)
    for zombie in zombies:
        zombie.thaw()
        await wait_for(lambda zombie=zombie: zombie.told("subscription_ended"), "its awakening", 30)
    await load
    await world.drained()
    findings = await world.intact(last=True)
    assert findings.steps_back <= 2 * 15


async def test_a_message_that_crashes_every_worker_is_dead_lettered_alone(make_world, node):
    world = await make_world(node, workers=0, environment={"FAULTS_POISON": POISON})
    culprit = world.culprit()
    requests = world.plan(40, invalid=0)
    async with few_deliveries(world):
        await world.start(3)
        await world.load.publish([*requests[:10], culprit, *requests[10:]])
        await wait_for_letter(world, culprit.id, 150)
        await world.drained()
        await world.intact(last=True)
    assert [(letter.request_id, letter.reason) for letter in world.letters] == [
        (culprit.id, "delivery_limit")
    ]


async def test_calls_in_flight_when_a_worker_is_killed_never_overlap_the_standbys(make_world, broker_url):
    world = await make_world(broker_url)
    world.sandbox.faults.add(Latency(seconds=0.3))
    await endure(world, FAULTS["kill -9"], 200, strikes=2, rate=100)
    await world.intact(last=True)


TAKE_OVER = 5.0  # seconds until the first reply made since


@pytest.mark.parametrize(
    "name", ["partitions: kill -9 of the router", "partitions: kill -9 of a partition's worker"]
)
async def test_kill_9_loses_nothing_and_the_others_go_on_within_seconds(name, make_world, broker_url):
    world = await make_world(broker_url, workers=3, environment=PARTITIONED)
    await endure(world, FAULTS[name], 300, strikes=1, rate=150)
    await world.intact(last=True)
    assert max(world.recoveries, default=0.0) < TAKE_OVER
