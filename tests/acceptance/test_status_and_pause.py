"""`status`, `pause` and `resume`: what an operator does at 3 a.m. (contract §9)."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest

from tests.commands import begin, ott_worker
from tests.rig import Requester, Rig, declare, messenger, until
from worker.broker.last_hour import Settled
from worker.broker.overview import Overview
from worker.broker.situation import judge
from worker.broker.status_stream import read_workers
from worker.broker.topology import Topology
from worker.cli.status import Causes, Screen, print_screen
from worker.contract.status import GateStatus, Pause, WorkerStatus
from worker.dead_letters.groups import Cause
from worker.errors import WorkerError
from worker.sandbox.faults import Status

NOW = datetime(2026, 11, 25, 3, 12, 30, tzinfo=UTC)


@pytest.fixture
async def worker(rig: Rig) -> AsyncIterator[asyncio.subprocess.Process]:
    """`ott-worker run`, which publishes its status as the library's parts alone do not. Where it has to
    declare the stream first, its first word comes 5 seconds late."""
    await declare(rig.settings())
    process = await begin(rig.settings(), "run", OTT_ADMIN_PORT="", OTT_GATE_AFTER="1")
    yield process
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    await process.communicate()


@pytest.fixture
async def requester(rig: Rig, worker: asyncio.subprocess.Process) -> Requester:
    requester = await rig.requester_for(rig.settings())
    await until(lambda: _workers(rig), "a worker that tells of itself")
    return requester


async def _status(rig: Rig) -> dict[str, Any]:
    return (await ott_worker(rig.settings(), "status", "--json")).documents[0]


async def _workers(rig: Rig) -> list[WorkerStatus]:
    try:
        return await read_workers(rig.settings())
    except WorkerError:  # nobody has declared the stream yet, or it is being made
        return []


async def test_status_tells_of_workers_queues_rates_and_dead_letters(rig: Rig, requester: Requester) -> None:
    await requester.ask(messenger())
    await requester.ask(messenger(endpointUrl=""))

    async def is_told() -> bool:
        (worker,) = await _workers(rig)
        return worker.state == "active" and worker.in_flight == 0

    await until(is_told, "the worker as it is")
    document = await _status(rig)
    assert document["at"].endswith("Z")
    assert document["workers"][0]["gate"] == {"state": "open", "why": None, "since": None}
    assert document["workers"][0]["partitions"] == []
    assert document["queues"] == {"requests": 0, "replies": 0, "dead": 1}
    assert (document["rates"]["minute"]["registered"], document["rates"]["hour"]["rejected"]) == (1, 1)
    (cause,) = document["deadLetters"]
    assert (cause["reason"], cause["count"]) == ("invalid", 1)
    assert "EndpointUrl must be provided" in cause["error"]
    assert cause["hint"]


async def test_status_tells_why_and_since_when_the_gate_is_closed(rig: Rig, requester: Requester) -> None:
    rig.sandbox.faults.add(Status(path="registration", status=503, message="Down for repair"))
    await requester.publish(messenger())

    async def is_closed() -> bool:
        return (await _workers(rig))[0].gate.state == "closed"

    await until(is_closed, "the outage")
    said = await ott_worker(rig.settings(), "status")
    assert "OUTAGE: Marketing Cloud takes no calls" in said.out
    assert re.search(r"takes no calls: Marketing Cloud answered 503: not available, \d s ago", said.out)
    rig.sandbox.heal()


async def test_a_pause_is_obeyed_told_and_ended(rig: Rig, requester: Requester) -> None:
    paused = await ott_worker(rig.settings(), "pause", "--why", "rotating the secret")
    assert (paused.code, paused.out) == (0, "Paused: 1 worker. Go on with: ott-worker resume\n")
    sent = await requester.publish(messenger())
    document = await _status(rig)
    assert document["paused"]["why"] == "rotating the secret"
    assert re.fullmatch(r"\S+@\S+", document["paused"]["by"])
    assert document["workers"][0]["paused"] == document["paused"]
    assert document["queues"]["requests"] == 1
    said = await ott_worker(rig.settings(), "status")
    assert re.search(r"PAUSED by \S+ .* ago .*: rotating the secret\nGo on with: ott-worker resume", said.out)
    assert rig.sandbox.history.registration_calls == []
    resumed = await ott_worker(rig.settings(), "resume")
    assert (resumed.code, resumed.out) == (0, "Resumed: 1 worker.\n")
    assert (await requester.reply(sent))["status"] == "registered"


async def test_a_killed_worker_is_told_and_not_counted(rig: Rig) -> None:
    requester = await rig.start()
    last_word = datetime.now(UTC) - timedelta(minutes=1)
    for record in (
        worker_status("killed:7", at=last_word, state="active"),
        worker_status("stopped:8", at=last_word, state="draining"),
    ):
        message = aio_pika.Message(record.to_json())
        await requester.channel.default_exchange.publish(message, f"{requester.prefix}.status")
    said = await ott_worker(rig.settings(), "status")
    assert "NO WORKER RUNS: 0 requests wait; killed:7 fell silent: killed, or cut off" in said.out
    assert re.search(r"killed:7: last heard 1 min ago .* killed, or cut off", said.out)
    assert "stopped" not in said.out


async def test_watch_goes_on_until_it_is_interrupted(rig: Rig, requester: Requester) -> None:
    process = await begin(rig.settings(), "status", "--watch", "--json")
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["workers"]
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (130, False)


@pytest.mark.parametrize("why", ["", "  "])
async def test_a_pause_wants_a_reason(rig: Rig, why: str) -> None:
    ended = await ott_worker(rig.settings(), "pause", "--why", why)
    assert (ended.code, ended.err) == (2, "ott-worker: --why must say why: others will read it\n")


@pytest.mark.parametrize("words", [["pause", "--why", "x"], ["resume"]])
async def test_an_order_that_nothing_takes_is_one_clear_line(rig: Rig, words: list[str]) -> None:
    ended = await ott_worker(rig.settings(), *words)
    assert (ended.code, ended.err.count("\n")) == (3, 1)
    assert "Nothing takes orders" in ended.err


def worker_status(name: str, **more: object) -> WorkerStatus:
    given = {
        "version": "1.1.0",
        "at": NOW,
        "state": "standby",
        "gate": GateStatus(state="open"),
        "in_flight": 0,
        "rate_per_second": 0,
        "reconnects": 0,
    }
    return WorkerStatus.model_validate({"worker": f"{name}:20261124T080000Z", **given, **more})


def night() -> Screen:
    """Marketing Cloud is away, and somebody has paused nothing yet."""
    away = GateStatus(
        state="closed",
        why="Marketing Cloud answered 503: not available",
        since=NOW - timedelta(minutes=7),
    )
    overview = Overview(
        workers=[
            worker_status("worker-7d4b9c-2xkqp:1", state="active", gate=away, in_flight=200, reconnects=1),
            worker_status("worker-7d4b9c-9fzhm:1"),
        ],
        lost=[worker_status("worker-7d4b9c-lt2vd:1", at=NOW - timedelta(minutes=3))],
        queues={"requests": 18_204, "replies": 0, "dead": 37},
        consumers=1,
        knows_workers=True,
    )
    died = int(NOW.timestamp() * 1_000_000)
    groups = [
        Cause("a", "exhausted", "10000 Marketing Cloud answered 500", None, None, 21, died, died),
        Cause(
            "b",
            "invalid",
            "10006 Please fix the following errors: EndpointUrl must be provided; PageId must be provided",
            None,
            None,
            14,
            died,
            died,
        ),
        Cause("c", "forbidden", "20002 Insufficient privileges", None, None, 2, died, died),
    ]
    rates = (Settled(60, {}), Settled(3600, {"registered": 61_220, "rejected": 14, "failed": 23}))
    causes = Causes(groups, 37)
    situation = judge(overview, Topology("ott.registration"), dead=causes.largest())
    return Screen("ott.registration", "RabbitMQ 4.0.9", NOW, situation, overview, rates, causes)


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_into_its_width(capsys: pytest.CaptureFixture[str], width: int) -> None:
    print_screen(night(), width)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width


def test_a_pause_comes_before_everything_else(capsys: pytest.CaptureFixture[str]) -> None:
    screen = night()
    screen.overview.pause = Pause(by="ann@ops", why="rotating", since=NOW - timedelta(minutes=2))
    screen.situation = judge(screen.overview, Topology("ott.registration"))
    print_screen(screen, 80)
    assert capsys.readouterr().out.splitlines()[1] == "PAUSED by ann@ops 2 min ago (03:10 UTC): rotating"
