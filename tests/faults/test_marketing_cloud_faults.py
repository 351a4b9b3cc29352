"""Marketing Cloud goes wrong: an outage is a pause, and what is asked for comes out right in the end."""

import time
from typing import Any

import pytest

from tests.faults.faults import FAULTS, QUICK_GATE
from tests.faults.load import wait_for
from tests.faults.world import World, endure
from tests.sandbox_faults import Status

ONE_BROKER = "What Marketing Cloud does wrong is no matter of RabbitMQ's version."

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {
    "OTT_HTTP_TIMEOUT": "1",
    "OTT_RETRY_BUDGET": "4",
    "FAULTS_CLOCKS": f"{QUICK_GATE},worker.pipeline.policy.BLOCKED_PAUSE=1",
}


# One row of the campaign for each kind; what each answer leads to: test_answers.py, test_accounts.py.
ROWS: dict[str, dict[str, Any]] = {
    "500 storm": {},
    "429, Retry-After in seconds": {},
    "hang": {},
    "reset after the request was sent": {},
    "half a response": {},
    "huge answer": {},
    "401 loop": {},
    "token endpoint down": {},
    "tokens that end early": {"requests": 400, "rate": 200, "status": 401},
    "tokens revoked mid-batch": {"strikes": 2, "status": 401},
}


async def _endures(
    world: World, name: str, requests: int = 120, strikes: int = 1, rate: int = 100, status: int | None = None
) -> None:
    # At a steady rate, so that requests are still coming when the fault strikes.
    await endure(world, FAULTS[name], requests, strikes, rate)
    await world.intact()
    hit = [
        c
        for c in world.sandbox.history
        if (c.fault not in (None, "latency") if status is None else c.status == status)
    ]
    assert hit, "nothing was hit"


@pytest.mark.parametrize("name", ROWS)
async def test_what_goes_wrong_is_waited_out_and_loses_nothing(world, name):
    await _endures(world, name, **ROWS[name])


async def test_429_with_50200_pauses_everything(world):
    await _endures(world, "429/50200", requests=400)
    calls = world.sandbox.history.registration_calls
    told_at = next(call.finished_at for call in calls if call.status == 429)
    assert told_at is not None
    later = [call for call in calls if call.arrived_at > told_at + 0.1]
    assert later[0].arrived_at - told_at >= 0.9


@pytest.mark.parametrize("name", ["wrong certificate", "DNS failure"])
async def test_a_way_that_is_closed_is_an_outage_until_it_is_open_again(make_world, module_broker_url, name):
    world = await make_world(
        module_broker_url, workers=1, behind_tls=True, environment=FAULTS[name].environment
    )
    await endure(world, FAULTS[name], 120, strikes=1, rate=100)
    assert world.workers.told("gate_closed"), "nothing was hit"
    await world.intact(last=True)


async def test_an_outage_of_an_hour_spends_no_attempt_and_dead_letters_nothing(make_world, module_broker_url):
    """With shortened clocks: every request was held, given back and held again, five times over."""
    clocks = {"FAULTS_CLOCKS": QUICK_GATE, "OTT_HOLD_LIMIT": "0.5"}
    world = await make_world(module_broker_url, workers=1, environment=clocks)
    world.sandbox.faults.add(Status(path="registration", status=503))
    await world.load.publish(world.plan(300, invalid=0))
    await wait_for(lambda: world.workers.told("subscribed") > 5, "deliveries going back")
    assert not world.load.answered
    world.struck()
    world.calm()
    await world.recovered(time.time())
    await world.drained()
    await world.intact(last=True)
    assert {reply.attempts for reply in world.load.replies} == {1}
    assert not world.letters
