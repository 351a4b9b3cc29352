"""An outage is a pause: when the gate closes, what goes through it, and how it opens (contract §6)."""

import asyncio
import json

from tests.rig import MESSENGER, Rig, messenger, until
from tests.support.marketing_cloud import GateEvents, failing
from worker.sandbox.faults import Latency


async def test_an_outage_pauses_spends_no_attempts_and_resumes_by_itself(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=5, retry_attempts=6)
    rig.sandbox.faults.add(failing(503))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(40)]
    await until(lambda: events.closed, "the gate to close")
    calls = len(rig.sandbox.history.registration_calls)
    await until(lambda: len(rig.sandbox.history.registration_calls) >= calls + 3, "three probes")
    probed = [call for call in rig.sandbox.history.registration_calls if call.seq > calls + 60]
    assert len({call.resource_id for call in probed}) == len(probed)
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    for i in ids:
        reply = await requester.reply(i)
        assert reply["status"] == "registered"
        assert reply["attempts"] <= 6
    assert events.opened == 1
    assert await requester.depth("dead") == 0


async def test_500s_of_one_resource_do_not_close_the_gate(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=3, retry_attempts=8)
    rig.sandbox.faults.add(failing(500, resource_id="bad"))
    assert (await requester.ask(messenger("bad")))["status"] == "failed"
    assert not events.closed


async def test_500s_of_three_resources_close_the_gate(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=3, retry_attempts=8)
    rig.sandbox.faults.add(failing(500))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(3)]
    await until(lambda: events.closed, "the gate to close")
    rig.sandbox.heal()
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"


async def test_a_request_that_always_fails_cannot_keep_the_gate_closed(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=2, retry_attempts=3)
    rig.sandbox.faults.add(failing(503, resource_id="bad"))
    bad = await requester.publish(messenger("bad"))
    await until(lambda: events.closed, "the gate to close")
    goods = [await requester.publish(messenger(f"good-{i}")) for i in range(8)]
    for good in goods:
        assert (await requester.reply(good))["status"] == "registered"
    while not requester.replies.get(bad):
        await requester.ask(messenger("good"))
    assert (await requester.reply(bad))["status"] == "failed"


async def test_blocked_without_a_hint_pauses_at_once(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=50)
    rig.sandbox.faults.add(failing(429, errorcode=50200, count=1))
    await requester.publish(messenger())
    await until(lambda: events.closed, "the gate to close")
    assert await requester.depth("dead") == 0


async def test_what_waits_for_the_rate_limit_makes_no_call_once_the_gate_is_closed(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, rate_limit=20, gate_after=3, retry_base=1000)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.3))
    rig.sandbox.faults.add(failing(503))
    for n in range(60):
        await requester.publish(messenger(f"p{n}"))
    await until(lambda: events.closed, "the gate to close")
    calls = rig.sandbox.history.registration_calls
    await until(lambda: all(call.status for call in calls), "the calls on their way")
    closed_with = len(calls)
    await asyncio.sleep(1)  # in which twenty more could have gone
    assert len(rig.sandbox.history.registration_calls) == closed_with < 60


async def test_waiting_for_the_rate_limit_does_not_spend_the_budget(rig: Rig) -> None:
    requester = await rig.start(rate_limit=10, retry_budget=2, gate_after=1000, retry_attempts=20)
    rig.sandbox.faults.add(failing(500, count=40))
    ids = [await requester.publish(messenger(f"p{n}")) for n in range(40)]
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"


async def test_a_secret_that_marketing_cloud_quotes_is_not_told_as_the_reason_of_a_pause(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, gate_after=1)
    secret = MESSENGER["ottPlatformAttributes"]["pageAccessToken"]
    body = json.dumps({"message": f"Blocked: {secret}", "errorcode": 50200})
    rig.sandbox.faults.add(failing(429, body=body, count=1))
    await requester.publish(messenger())
    await until(lambda: events.closed, "the gate to close")
    assert "***" in str(events.closed)
    assert secret not in str(events.closed)


async def test_a_probe_does_not_wait_behind_those_that_wait_for_the_rate_limit(rig: Rig) -> None:
    events = GateEvents()
    requester = await rig.start(events, rate_limit=1, gate_after=2)
    rig.sandbox.faults.add(failing(503, count=2))
    for i in range(60):
        await requester.publish(messenger(f"p{i}"))
    await until(lambda: events.opened, "the gate to open: in a minute, at a call a second")
