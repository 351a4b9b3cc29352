"""A pause by order (contract §9): no calls, nothing taken, everything back in order."""

import asyncio
from typing import Any

from tests.rig import Requester, Rig, messenger, until
from tests.sandbox_faults import Latency, Status
from worker.broker.status import publish_order
from worker.contract.status import Order
from worker.events import EventListener
from worker.service import Service


async def order(rig: Rig, kind: Any, why: str = "rotating secrets") -> None:
    await publish_order(rig.settings(), Order.now(kind, why, by="ann@host"))


async def start(rig: Rig, **overrides: Any) -> tuple[Service, Requester]:
    service = await rig.start_worker(rig.settings(**overrides))
    return service, await rig.requester_for(rig.settings())


async def test_a_paused_worker_takes_nothing_and_calls_nobody_until_it_is_resumed(rig):
    service = await rig.start_worker(rig.settings())
    requester = await rig.requester_for(rig.settings())
    await order(rig, "pause")
    await until(lambda: service.intake.subscription is None, "the end of the subscription")
    sent = [await requester.publish(messenger("p", f"v{i}")) for i in range(5)]
    await until(lambda: requester.holds("requests", [5]), "the requests in the queue")
    assert rig.names_called == []
    await order(rig, "resume")
    await requester.all_registered(sent)
    assert rig.names_called == [f"v{i}" for i in range(5)]
    assert rig.events.of("paused") == [("ann@host", "rotating secrets")]
    assert rig.events.of("resumed") == [()]


async def test_what_was_in_flight_goes_back_in_order_and_costs_no_attempt(rig):
    service, requester = await start(rig, gate_after=1)
    rig.sandbox.faults.add(Status(path="registration", status=503))
    sent = [await requester.publish(messenger("p", f"v{i}")) for i in range(5)]
    await until(lambda: service.flow.is_pausing, "the outage")
    await order(rig, "pause")
    await until(lambda: requester.holds("requests", [5]), "the requests in the queue")
    rig.sandbox.heal()
    calls = len(rig.names_called)
    await order(rig, "resume")
    replies = [await requester.reply(correlation_id) for correlation_id in sent]
    assert [reply["attempts"] for reply in replies] == [1] * 5
    assert rig.names_called[calls:] == [f"v{i}" for i in range(5)]


async def test_a_call_on_the_wire_ends_and_is_settled(rig):
    service, requester = await start(rig)
    rig.sandbox.faults.add(Latency(path="registration", seconds=1))
    sent = await requester.publish(messenger())
    await until(lambda: rig.sandbox.history.registration_calls, "the call")
    await order(rig, "pause")
    assert (await requester.reply(sent))["status"] == "registered"
    await until(lambda: service.intake.subscription is None, "the end of the subscription")
    assert await requester.depth("requests") == 0
    assert len(rig.names_called) == 1


async def test_a_worker_that_starts_during_a_pause_is_paused(rig):
    first, requester = await start(rig)
    await order(rig, "pause")
    await until(lambda: first.intake.subscription is None, "the pause")
    await rig.stop_worker(first)
    sent = await requester.publish(messenger())
    second = Service(rig.settings(), EventListener())
    running = asyncio.create_task(second.run())
    await until(lambda: second.orders.pause, "the pause that stands")
    await asyncio.sleep(0.3)
    assert (second.intake.subscription, rig.names_called) == (None, [])
    await order(rig, "resume")
    assert (await requester.reply(sent))["status"] == "registered"
    second.stop()
    await running


async def test_a_paused_worker_stops_when_it_is_told_to(rig):
    service, _ = await start(rig)
    await order(rig, "pause")
    await until(lambda: service.intake.subscription is None, "the pause")
    async with asyncio.timeout(20):
        await rig.stop_worker(service)
