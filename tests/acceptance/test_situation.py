"""Each state is brought about for real, and every screen names it within 5 seconds: `status`, `check`,
`/readyz`, the console and the log (contract §9)."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aio_pika
import aiohttp
import pytest
import structlog

from tests.acceptance.test_check import check
from tests.commands import begin, end, ott_worker
from tests.rig import Requester, Rig, messenger, until, worker_status
from tests.sandbox_faults import Status
from worker.broker.status import publish_order, read_workers
from worker.console.server import Console
from worker.contract.status import STATUS_INTERVAL, Order
from worker.events import EventListeners
from worker.service import Service
from worker.telemetry import admin
from worker.telemetry.log import Log, configure
from worker.telemetry.metrics import Metrics
from worker.telemetry.status import WorkerPhase

GOAL = 10.0  # seconds from the fault to the first screen that names it; 5 on a quiet machine


class Worker:
    """A worker with all that tells of it, and the console."""

    def __init__(self, rig: Rig, **overrides: Any) -> None:
        ports = {"admin_port": 0, "console_port": 0, "shutdown_grace": 1}
        self.settings = rig.settings(**ports, gate_after=1, log_format="json", **overrides)
        self.log = io.StringIO()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Worker"]:
        phase, metrics = WorkerPhase(), Metrics()
        log = Log(configure(self.settings, self.log), debug=False)
        service = Service(self.settings, EventListeners(metrics, phase, log))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(structlog.reset_defaults)
            self.admin_url = await stack.enter_async_context(admin.serve(service, metrics, phase))
            await stack.enter_async_context(phase.publish(service))
            ended = asyncio.create_task(service.run())
            stack.push_async_callback(asyncio.wait, {ended})
            stack.callback(service.stop)
            await until(lambda: service.intake.subscription, "the subscription")
            yield self

    async def readyz(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin_url}/readyz") as response:
            return dict(await response.json())


async def page(console: Console) -> dict[str, Any]:
    accept = {"Accept": "application/json"}
    async with aiohttp.ClientSession() as session, session.get(console.url, headers=accept) as response:
        return dict(await response.json())


async def is_said(console: Console, words: str) -> bool:
    return words in str((await page(console))["situation"])


async def told(console: Console, state: str) -> float:
    """Seconds until the console names the state first."""
    began = time.monotonic()

    async def is_told() -> bool:
        return bool((await page(console))["situation"][0]["state"] == state)

    await until(is_told, state)
    return time.monotonic() - began


async def paused(rig: Rig, requester: Requester) -> None:
    await publish_order(rig.settings(), Order.now("pause", "rotating", by="ann@host"))


async def outage(rig: Rig, requester: Requester) -> None:
    rig.sandbox.faults.add(Status(path="registration", status=503))
    await requester.publish(messenger())


async def dead_letters(rig: Rig, requester: Requester) -> None:
    await requester.ask(b"{}")


async def full_replies(rig: Rig, requester: Requester) -> None:
    name = f"{requester.prefix}.replies"
    await requester.channel.queue_delete(name)
    limits = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    await requester.channel.declare_queue(name, durable=True, arguments=limits)
    for _ in range(50):  # the limit is enforced a little later
        await requester.publish(b"{}", reply_to="")
        await asyncio.sleep(0.02)


async def foreign_consumer(rig: Rig, requester: Requester) -> None:
    await requester.publish(messenger())


async def keep(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Hold it, as a consumer that hangs."""


async def nothing(rig: Rig, requester: Requester) -> None:
    await requester.ask(messenger())


Fault = Callable[[Rig, Requester], Awaitable[None]]
CASES: list[tuple[str, Fault, dict[str, Any], int, str, str, str]] = [
    # state, fault, settings, exit code of check, on the screens, in /readyz, in the log
    ("paused", paused, {}, 1, "by ann@host", "PAUSED by ann@host", "paused by order"),
    ("outage", outage, {}, 1, "is unavailable", "OUTAGE", "paused: Marketing Cloud is unavailable"),
    (
        "credentials",
        nothing,
        {"mc_client_secret": "wrong"},
        1,
        "does not end by itself: replace OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET",
        "CREDENTIALS REFUSED",
        "invalid_client",
    ),
    ("blocked", full_replies, {"declare": False}, 1, "Make room", "BLOCKED by", "rejects publishes"),
    ("not_consuming", foreign_consumer, {}, 1, "has another consumer", "", "standby"),
    ("dead_letters", dead_letters, {}, 0, "(invalid)", "", "active"),
    ("well", nothing, {}, 0, "requests are settled as they arrive", "", "active"),
]


@pytest.mark.parametrize(("state", "fault", "given", "code", "says", "ready", "logged"), CASES)
async def test_every_screen_names_the_state(rig, state, fault, given, code, says, ready, logged):
    requester = await rig.start()  # declares everything
    await rig.stop_first()
    async with contextlib.AsyncExitStack() as stack:
        if fault is foreign_consumer:
            other = await aio_pika.connect(rig.settings().amqp_url.get_secret_value())
            stack.push_async_callback(other.close)
            channel = await other.channel()
            await channel.set_qos(1)
            queue = await channel.get_queue(f"{requester.prefix}.requests", ensure=False)
            await queue.consume(keep)
            await requester.publish(messenger("held by the other one"))
        worker = await stack.enter_async_context(Worker(rig, **given).running())
        console = await stack.enter_async_context(Console(worker.settings))
        fault_ends = asyncio.create_task(fault(rig, requester))
        stack.callback(fault_ends.cancel)
        seconds = await told(console, state)
        print(f"{state}: {seconds:.1f} s")
        assert seconds < GOAL
        status = (await ott_worker(worker.settings, "status")).out
        name = (await page(console))["situation"][0]["headline"].upper()
        assert name in status.upper()
        assert says in " ".join(status.split())
        await until(lambda: is_said(console, says), says)
        checked = await check(worker.settings)
        if state != "credentials":  # where the token's own line fails first
            assert checked.code == code, checked.out
        if code:
            assert says in checked.out
        report = await worker.readyz()
        assert ready in " ".join(report["situation"])
        assert bool(report["situation"]) == bool(ready)
        assert logged in worker.log.getvalue()
        rig.sandbox.heal()
        await publish_order(rig.settings(), Order.now("resume", "", by="ann@host"))


async def test_without_a_worker_what_waits_is_told_and_nobody_was_killed(rig):
    worker = Worker(rig)
    async with worker.running():
        requester = await rig.requester_for(worker.settings)
        await requester.ask(messenger())
        await until(lambda: _names(worker), "the record")
    assert await _names(worker) == []  # its last record tells that it stopped
    await requester.publish(messenger())
    async with Console(worker.settings) as console:
        assert await told(console, "no_worker") < GOAL
        document = await page(console)
    assert (document["lost"], document["situation"][0]["cause"]) == ([], "1 request waits")
    said = (await ott_worker(worker.settings, "status")).out
    assert "NO WORKER IS RUNNING: 1 request waits" in said
    assert "killed" not in said
    checked = await check(worker.settings)
    assert (checked.code, "NO WORKER IS RUNNING: 1 request waits" in checked.out) == (1, True)


async def test_without_a_worker_what_waits_in_partitions_is_told(rig):
    requester = await rig.start(partitions=3)
    await rig.stop_first()
    exchange, prefix = requester.channel.default_exchange, requester.prefix
    await exchange.publish(aio_pika.Message(messenger()), f"{prefix}.requests.2")
    await until(lambda: requester.holds("requests.2", {1}), "the request")
    checked = await check(rig.settings())
    assert (checked.code, "NO WORKER IS RUNNING: 1 request waits." in checked.out) == (1, True), checked.out
    killed = worker_status(partitions=[1, 2, 3])  # it is listed as active for a while
    await exchange.publish(aio_pika.Message(killed.to_json()), f"{prefix}.status")
    checked = await check(rig.settings())
    assert (checked.code, "has no consumer, and 1 request waits" in checked.out) == (1, True), checked.out


async def test_a_worker_whose_status_is_not_known_is_not_called_gone(rig):
    requester = await rig.start()
    await rig.stop_first()
    async with Worker(rig, declare=False).running() as worker:
        await requester.channel.queue_delete(f"{requester.prefix}.status")
        said = (await ott_worker(worker.settings, "status")).out
        assert f"{requester.prefix}.status is missing" in " ".join(said.split())
        assert "NO WORKER IS RUNNING" not in said


async def _names(worker: Worker) -> list[str]:
    return [each.worker for each in await read_workers(worker.settings)]


async def test_a_broker_that_is_away_is_told_at_once(rig):
    settings = rig.settings(amqp_url="amqp://guest:guest@127.0.0.1:1/", console_port=0)
    async with Console(settings) as console:
        assert await told(console, "unreachable") < GOAL
        async with aiohttp.ClientSession() as session, session.get(console.url) as response:
            text = await response.text()
            assert "banner good" not in text
            assert 'class="stale"' in text
            assert "<dd>0</dd>" not in text
    said = await ott_worker(settings, "status")
    assert (said.code, "cannot be reached: connection refused" in said.err) == (3, True)


async def test_an_output_that_knows_ascii_alone_shows_the_rest_as_escapes(rig):
    await rig.start()
    said = await end(await begin(rig.settings(), "status", PYTHONIOENCODING="ascii"))
    assert (said.code, said.err) == (0, "")
    assert "RabbitMQ" in said.out
    assert said.out.isascii()


async def test_a_worker_tells_of_itself_within_a_second_of_connecting(rig):
    await rig.start()
    worker = Worker(rig)
    async with worker.running():
        began = time.monotonic()
        await until(lambda: _names(worker), "the first record")
        assert time.monotonic() - began < STATUS_INTERVAL - 1
