"""Marketing Cloud goes wrong: an outage is a pause, and what is asked for comes out right in the end."""

import time

import pytest

from tests.faults.conftest import MakeWorld
from tests.faults.faults import FAULTS, QUICK_GATE, endure
from tests.faults.load import wait_for
from tests.faults.world import World
from worker.sandbox.faults import Status

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {
    "OTT_HTTP_TIMEOUT": "1",
    "OTT_RETRY_BUDGET": "4",
    "FAULTS_CLOCKS": f"{QUICK_GATE},worker.pipeline.policy.BLOCKED_PAUSE=1",
}


@pytest.fixture(scope="module")
def module_broker_url(first_broker: str) -> str:
    """What Marketing Cloud does wrong is no matter of RabbitMQ's version."""
    return first_broker


async def _endures(world: World, name: str, requests: int = 120) -> None:
    # At a steady rate, so that requests are still coming when the fault strikes.
    await endure(world, FAULTS[name], requests, strikes=1, rate=100)
    await world.intact()
    assert [call for call in world.sandbox.history if call.fault not in (None, "latency")], "nothing was hit"


async def test_a_storm_of_500s_is_waited_out(world: World) -> None:
    await _endures(world, "500 storm")


async def test_a_storm_of_502s_is_waited_out(world: World) -> None:
    await _endures(world, "502 storm")


async def test_a_storm_of_503s_is_waited_out(world: World) -> None:
    await _endures(world, "503 storm")


async def test_a_web_page_with_200_is_an_outage(world: World) -> None:
    await _endures(world, "web page with 200")


async def test_429_with_retry_after_in_seconds_is_heeded(world: World) -> None:
    await _endures(world, "429, Retry-After in seconds")


async def test_429_with_retry_after_as_a_date_is_heeded(world: World) -> None:
    await _endures(world, "429, Retry-After as a date")


async def test_429_with_an_absurd_retry_after_stops_nothing_for_long(world: World) -> None:
    await _endures(world, "429, absurd Retry-After")


async def test_429_with_a_negative_retry_after_is_an_outage_like_others(world: World) -> None:
    await _endures(world, "429, negative Retry-After")


async def test_429_with_50200_pauses_everything(world: World) -> None:
    await _endures(world, "429/50200", requests=400)
    calls = world.sandbox.history.registration_calls
    told_at = next(call.finished_at for call in calls if call.status == 429)
    assert told_at is not None
    later = [call for call in calls if call.arrived_at > told_at + 0.1]
    assert later[0].arrived_at - told_at >= 0.9


async def test_calls_that_hang_are_given_up_and_made_again(world: World) -> None:
    await _endures(world, "hang")


async def test_a_reset_after_the_request_was_sent_is_tried_again(world: World) -> None:
    await _endures(world, "reset after the request was sent")


async def test_half_a_response_counts_by_its_head(world: World) -> None:
    await _endures(world, "half a response")


async def test_a_huge_answer_is_cut_short(world: World) -> None:
    await _endures(world, "huge answer")


async def test_an_answer_that_is_not_json_is_taken_for_its_status(world: World) -> None:
    await _endures(world, "answer that is not JSON")


async def test_a_redirect_is_never_followed(world: World) -> None:
    await _endures(world, "redirect")
    assert all(call.method == "POST" for call in world.sandbox.history)


async def test_tokens_that_end_early_are_replaced(world: World) -> None:
    await endure(world, FAULTS["tokens that end early"], 400, strikes=1, rate=200)
    await world.intact()
    assert [call for call in world.sandbox.history if call.status == 401], "nothing was hit"


async def test_tokens_revoked_mid_batch_are_replaced(world: World) -> None:
    await endure(world, FAULTS["tokens revoked mid-batch"], 120, strikes=2, rate=100)
    await world.intact()
    assert [call for call in world.sandbox.history if call.status == 401], "nothing was hit"


async def test_a_token_endpoint_that_is_down_is_an_outage(world: World) -> None:
    await _endures(world, "token endpoint down")


async def test_a_token_endpoint_that_hangs_is_an_outage(world: World) -> None:
    await _endures(world, "token endpoint hanging")


async def test_a_token_endpoint_that_refuses_is_an_outage(world: World) -> None:
    await _endures(world, "token endpoint refusing")


async def test_a_loop_of_401s_is_an_outage(world: World) -> None:
    await _endures(world, "401 loop")


async def test_a_wrong_certificate_is_an_outage_until_it_is_right_again(
    make_module_world: MakeWorld, module_broker_url: str
) -> None:
    await _endures_without_the_way(make_module_world, module_broker_url, "wrong certificate")


async def test_a_host_name_that_is_not_known_is_an_outage_until_it_is_known_again(
    make_module_world: MakeWorld, module_broker_url: str
) -> None:
    await _endures_without_the_way(make_module_world, module_broker_url, "DNS failure")


async def _endures_without_the_way(make: MakeWorld, url: str, name: str) -> None:
    world = await make(url, workers=1, behind_tls=True, environment=FAULTS[name].environment)
    await endure(world, FAULTS[name], 120, strikes=1, rate=100)
    assert world.workers.told("gate_closed"), "nothing was hit"
    await world.intact(last=True)


async def test_an_outage_of_an_hour_spends_no_attempt_and_dead_letters_nothing(
    make_module_world: MakeWorld, module_broker_url: str
) -> None:
    """With shortened clocks: every request was held, given back and held again, five times over."""
    clocks = {"FAULTS_CLOCKS": QUICK_GATE, "OTT_HOLD_LIMIT": "0.5"}
    world = await make_module_world(module_broker_url, workers=1, environment=clocks)
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
