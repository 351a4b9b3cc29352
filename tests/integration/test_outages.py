"""An outage is a pause: when the gate closes, what goes through it, and how it opens (contract §6)."""

import asyncio
import json

from tests.rig import MESSENGER, failing, messenger, until
from tests.sandbox_faults import Latency

ONE_BROKER = (
    "The gate is no matter of RabbitMQ's version; what goes back to the queue is tested in test_order.py."
)


async def test_an_outage_pauses_spends_no_attempts_and_resumes_by_itself(rig):
    requester = await rig.start(gate_after=5, retry_attempts=6)
    rig.sandbox.faults.add(failing(503))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(40)]
    await until(lambda: rig.events.closed, "the gate to close")
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
    assert rig.events.opened == 1
    assert await requester.depth("dead") == 0


async def test_a_request_that_always_fails_cannot_keep_the_gate_closed(rig):
    requester = await rig.start(gate_after=2, retry_attempts=3)
    rig.sandbox.faults.add(failing(503, resource_id="bad"))
    bad = await requester.publish(messenger("bad"))
    await until(lambda: rig.events.closed, "the gate to close")
    goods = [await requester.publish(messenger(f"good-{i}")) for i in range(8)]
    await requester.all_registered(goods)
    while not requester.replies.get(bad):
        await requester.ask(messenger("good"))
    assert (await requester.reply(bad))["status"] == "failed"


async def test_what_waits_for_the_rate_limit_makes_no_call_once_the_gate_is_closed(rig):
    requester = await rig.start(rate_limit=20, gate_after=3, retry_base=1000)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.3))
    rig.sandbox.faults.add(failing(503))
    for n in range(60):
        await requester.publish(messenger(f"p{n}"))
    await until(lambda: rig.events.closed, "the gate to close")
    calls = rig.sandbox.history.registration_calls
    await until(lambda: all(call.status for call in calls), "the calls on their way")
    closed_with = len(calls)
    await asyncio.sleep(1)  # in which twenty more could have gone
    assert len(rig.sandbox.history.registration_calls) == closed_with < 60


async def test_why_the_gate_closed_is_told_without_a_word_of_marketing_clouds(rig):
    requester = await rig.start(gate_after=1)
    secret = MESSENGER["ottPlatformAttributes"]["pageAccessToken"]
    body = json.dumps({"message": f"Blocked: {secret}", "errorcode": 50200})
    rig.sandbox.faults.add(failing(429, body=body, count=1))
    await requester.publish(messenger())
    await until(lambda: rig.events.closed, "the gate to close")
    assert rig.events.closed == ["Marketing Cloud answered 429: this client is blocked for a while"]


async def test_one_page_that_always_fails_does_not_fill_the_prefetch_for_long(rig):
    """Once one of its requests was given up, each further one gets a single attempt, until one succeeds."""
    requester = await rig.start(prefetch=20, retry_attempts=4, retry_base=0.2, coalesce_after=0)
    rig.sandbox.faults.add(failing(500, resource_id="bad"))
    bad = [await requester.publish(messenger("bad")) for _ in range(60)]
    good = await requester.publish(messenger("good"))
    assert (await requester.reply(good))["status"] == "registered"
    attempts = [(await requester.reply(i))["attempts"] for i in bad]
    assert attempts == [4] + [1] * 59
    rig.sandbox.heal()
    assert (await requester.ask(messenger("bad")))["status"] == "registered"
    rig.sandbox.faults.add(failing(500, resource_id="bad", count=3))
    assert (await requester.ask(messenger("bad")))["attempts"] == 4


async def test_a_lone_request_is_not_exhausted_by_an_outage(rig):
    """Attempts are spent only while others are answered."""
    requester = await rig.start(retry_attempts=3, gate_after=5)
    rig.sandbox.faults.add(failing(503, count=12))
    assert (await requester.ask(messenger()))["status"] == "registered"
    assert len(rig.sandbox.history.registration_calls) == 13


async def test_pages_that_were_given_up_are_not_dead_lettered_in_an_outage(rig):
    """Several that fail in a row, with no success between, tell of one as all requests do."""
    requester = await rig.start(retry_attempts=1, gate_after=5)
    pages = [f"page-{n}" for n in range(10)]
    for page in pages:
        rig.sandbox.faults.add(failing(500, resource_id=page, count=1))
        assert (await requester.ask(messenger(page)))["status"] == "failed"
        await requester.ask(messenger("good"))
    rig.sandbox.faults.add(failing(503))
    ids = [await requester.publish(messenger(page)) for page in pages]
    await until(lambda: rig.events.closed, "the gate to close")
    rig.sandbox.heal()
    replies = [await requester.reply(i) for i in ids]
    assert [reply["status"] for reply in replies].count("failed") < 5


async def test_waiting_for_the_rate_limit_does_not_spend_the_budget(rig):
    requester = await rig.start(rate_limit=10, retry_budget=1, gate_after=1000, retry_attempts=20)
    rig.sandbox.faults.add(failing(500, count=15))
    ids = [await requester.publish(messenger(f"p{n}")) for n in range(15)]
    await requester.all_registered(ids)
