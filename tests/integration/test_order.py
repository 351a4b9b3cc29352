"""The latest wins: per-resource order, across retries, holds and restarts (contract §2, §6)."""

import random
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from tests.rig import WAIT_TIMEOUT, Events, messenger, until
from tests.sandbox_faults import Latency, Reset, Status
from worker.pipeline.forward import EnsureLease
from worker.pipeline.request import Outcome, Request


async def test_requests_for_one_resource_go_one_at_a_time_in_order(rig):
    requester = await rig.start(coalesce_after=0)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0, up_to=0.02))
    ids = [await requester.publish(messenger("p", f"v{i}")) for i in range(30)]
    for i in ids:
        await requester.reply(i)
    calls = rig.sandbox.history.registration_calls
    assert rig.names_called == [f"v{i}" for i in range(30)]
    assert {c.in_flight for c in calls} == {0}
    assert [i for i in requester.order if i in ids] == ids


async def test_different_resources_proceed_side_by_side(rig):
    requester = await rig.start(shutdown_grace=0)  # the calls outlast the test
    rig.sandbox.faults.add(Latency(path="registration", seconds=WAIT_TIMEOUT))
    for number in range(10):
        await requester.publish(messenger(f"p{number}"))
    await until(lambda: len(rig.sandbox.history.registration_calls) == 10, "ten calls under way")


async def test_one_page_of_two_accounts_is_two_resources(rig):
    requester = await rig.start(shutdown_grace=0)  # the first call outlasts the test
    rig.sandbox.faults.add(Latency(path="registration", account="1", seconds=WAIT_TIMEOUT))
    await requester.publish(messenger("p", "first"), headers={"x-ott-account-id": "1"})
    await requester.ask(messenger("p", "second"), headers={"x-ott-account-id": "2"})
    assert rig.held("p", "2") == "second"  # the other one is still under way, and holds up nobody


async def test_hundreds_of_requests_over_30_resources_end_with_the_last_version_of_each(rig):
    requester = await rig.start(gate_after=1000, retry_attempts=50)
    rig.sandbox.faults.add(
        Status(path="registration", status=500, rate=0.02),
        Status(path="registration", status=503, rate=0.02),
        Status(path="registration", status=429, rate=0.01),
        Reset(path="registration", rate=0.01, applied=True),
    )
    chooser = random.Random(7)
    versions: Counter[str] = Counter()
    ids = []
    for _ in range(600):
        page = f"page-{chooser.randrange(30)}"
        versions[page] += 1
        ids.append(await requester.publish(messenger(page, f"v{versions[page]}")))
    statuses = Counter([(await requester.reply(i))["status"] for i in ids])
    assert statuses == {"registered": 600}
    assert {page: rig.held(page) for page in versions} == {p: f"v{n}" for p, n in versions.items()}
    assert {call.in_flight for call in rig.sandbox.history.registration_calls} == {0}
    assert await requester.depth("dead") == 0


def why_returned(events: Events) -> list[str]:
    return [why for _, why in events.of("returned")]


async def test_what_is_held_too_long_goes_back_in_order_and_is_taken_again(rig):
    requester = await rig.start(hold_limit=1, gate_after=2)
    rig.sandbox.faults.add(Status(path="registration", status=503))
    ids = [await requester.publish(messenger(f"p{i % 3}", f"v{i}")) for i in range(12)]
    await until(lambda: why_returned(rig.events).count("held for too long") >= 2, "two returns")
    rig.sandbox.heal()
    await requester.all_registered(ids)
    assert [rig.held(f"p{n}") for n in range(3)] == ["v9", "v10", "v11"]
    assert await requester.depth("dead") == 0


async def test_what_an_outage_sent_back_is_not_suspected_of_ending_the_worker(rig):
    requester = await rig.start(hold_limit=1, gate_after=2)
    rig.sandbox.faults.add(Status(path="registration", status=503))
    ids = [await requester.publish(messenger(f"p{i}")) for i in range(20)]
    await until(lambda: why_returned(rig.events).count("held for too long") >= 4, "four returns")
    rig.sandbox.heal()
    made = len(rig.sandbox.history.registration_calls)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.6))
    await requester.all_registered(ids)
    calls = [call for call in rig.sandbox.history.registration_calls[made:] if call.status == 201]
    beside = [a for a, b in pairwise(calls) if a.finished_at is not None and a.finished_at > b.arrived_at]
    assert len(beside) > len(ids) / 2  # suspects would go one after the other


async def test_draining_ends_calls_in_flight_and_gives_the_rest_back(rig, requester):
    service = rig.services[0]
    await requester.ask(messenger("warm"))
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.5))
    ids = [await requester.publish(messenger(f"p{i % 5}", f"v{i}")) for i in range(25)]
    calls = rig.sandbox.history
    await until(lambda: len(calls.registration_calls) >= 6, "the calls")
    await rig.stop_worker(service)
    made = len(calls.registration_calls)
    await until(lambda: len(requester.order) == made, "replies for the calls in flight")
    await until(lambda: requester.depth("requests"), "the rest")
    assert await requester.depth("requests") == len(ids) + 1 - made
    rig.sandbox.heal()
    await rig.start_worker(rig.settings())
    await requester.all_registered(ids)
    assert [rig.held(f"p{n}") for n in range(5)] == [f"v{n}" for n in range(20, 25)]
    assert all(len(replies) == 1 for replies in requester.replies.values())


async def test_a_standby_takes_over_where_the_active_worker_left_off(rig):
    requester = await rig.start(coalesce_after=0)
    active = rig.services[0]
    await rig.start_worker(rig.settings(coalesce_after=0))
    ids = []
    for i in range(300):
        ids.append(await requester.publish(messenger(f"p{i % 10}", f"v{i}")))
        if i == 150:
            await rig.stop_worker(active)
    await requester.all_registered(ids)
    assert [rig.held(f"p{n}") for n in range(10)] == [f"v{n}" for n in range(290, 300)]
    assert {call.in_flight for call in rig.sandbox.history.registration_calls} == {0}


async def test_a_defect_gives_everything_back_and_nothing_overtakes(rig, requester, monkeypatch):
    service = rig.services[0]
    forward, defects = service.tools.forwarder.forward, iter([True])

    async def sometimes(request: Request, ensure_lease: EnsureLease) -> Outcome:
        if next(defects, False):
            raise RuntimeError("a defect")
        return await forward(request, ensure_lease)

    monkeypatch.setattr(service.tools.forwarder, "forward", sometimes)
    ids = [await requester.publish(messenger("p", f"v{i}")) for i in range(5)]
    await requester.all_registered(ids)
    assert why_returned(rig.events) == ["processing failed"]
    assert rig.held("p") == "v4"


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_busy_page_holds_up_nobody(rig, partitions):
    requester = await rig.start(partitions=partitions)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.2))
    busy = [await requester.publish(messenger("busy", f"v{n}")) for n in range(1_000)]
    began = time.monotonic()
    assert (await requester.ask(messenger("other")))["status"] == "registered"
    assert time.monotonic() - began < 20  # seconds; 200 where each of the busy page has its call
    replies = [await requester.reply(i) for i in busy]
    statuses = Counter(reply["status"] for reply in replies)
    assert statuses["registered"] + statuses["superseded"] == 1_000
    assert statuses["superseded"] > 500
    assert replies[-1]["status"] == "registered"
    assert rig.held("busy") == "v999"
    newer = {reply["requestId"] for reply in replies if reply["status"] == "registered"}
    assert {reply["supersededBy"] for reply in replies if reply["status"] == "superseded"} <= newer
    assert {reply["attempts"] for reply in replies if reply["status"] == "superseded"} == {0}


async def test_attempts_are_spent_though_the_delivery_goes_back_between(rig):
    requester = await rig.start(hold_limit=0.5, retry_attempts=4, retry_base=2)
    rig.sandbox.faults.add(Status(path="registration", resource_id="bad", status=500))
    bad = await requester.publish(messenger("bad"))
    while not requester.replies.get(bad):
        assert (await requester.ask(messenger("good")))["status"] == "registered"
    reply = await requester.reply(bad)
    assert (reply["status"], reply["attempts"]) == ("failed", 4)
    assert (await requester.take("dead")).headers["x-ott-reason"] == "exhausted"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_request_that_comes_again_is_no_newer_than_at_its_first_arrival(rig, proxy, is_lost):
    """The second one was true after the first had arrived, and before that came again."""
    requester = await rig.requester_for(rig.settings())
    await rig.start_worker(rig.settings(amqp_url=proxy.url, hold_limit=60 if is_lost else 1, gate_after=2))
    rig.sandbox.faults.add(Status(path="registration", status=503))
    first = await requester.publish(messenger("p", "first"))
    await until(lambda: rig.names_called, "the first call")
    true_at = {"x-ott-as-of": datetime.now(UTC).isoformat()}
    second = await requester.publish(messenger("p", "second"), headers=true_at)
    subscription = rig.services[0].intake.subscription
    await until(lambda: subscription.unsettled == 2, "both")
    if is_lost:
        proxy.reset()
    await until(lambda: rig.events.of("subscription_ended" if is_lost else "returned"), "the end")
    rig.sandbox.heal()
    await requester.all_registered([first, second])
    assert rig.held("p") == "second"
