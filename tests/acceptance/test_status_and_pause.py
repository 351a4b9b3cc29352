"""`status`, `pause` and `resume`: what an operator does at 3 a.m. (contract §9)."""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.commands import begin, ott_worker
from tests.rig import Requester, Rig, declare, messenger, until
from worker.broker.status import read_workers
from worker.contract.status import WorkerStatus
from worker.errors import WorkerError


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


async def test_status_tells_of_workers_queues_rates_and_dead_letters(rig, requester):
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


async def test_a_pause_is_obeyed_told_and_ended(rig, requester):
    paused = await ott_worker(rig.settings(), "pause", "--why", "rotating the secret")
    assert (paused.code, paused.out) == (0, "Paused: 1 worker. Resume with: ott-worker resume\n")
    sent = await requester.publish(messenger())
    document = await _status(rig)
    assert document["paused"]["why"] == "rotating the secret"
    assert re.fullmatch(r"\S+@\S+", document["paused"]["by"])
    assert document["workers"][0]["paused"] == document["paused"]
    assert document["queues"]["requests"] == 1
    said = await ott_worker(rig.settings(), "status")
    assert re.search(
        r"PAUSED by \S+, since .*: rotating the secret\nResume with: ott-worker resume", said.out
    )
    assert rig.sandbox.history.registration_calls == []
    resumed = await ott_worker(rig.settings(), "resume")
    assert (resumed.code, resumed.out) == (0, "Resumed: 1 worker.\n")
    assert (await requester.reply(sent))["status"] == "registered"


async def test_watch_goes_on_until_it_is_interrupted(rig, requester):
    process = await begin(rig.settings(), "status", "--watch", "--json")
    assert process.stdout is not None
    for _ in range(2):
        assert json.loads(await asyncio.wait_for(process.stdout.readline(), 30))["workers"]
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (130, False)


@pytest.mark.parametrize("why", ["", "  "])
async def test_a_pause_wants_a_reason(rig, why):
    ended = await ott_worker(rig.settings(), "pause", "--why", why)
    assert (ended.code, ended.err) == (2, "ott-worker: --why must give a reason: others will read it\n")
