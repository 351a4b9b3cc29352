"""Nothing local stops the work: what `run` does where its own machine fails it (contract §7)."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.secured.ports import free_port
from tests.rig import Requester, Rig, environment, messenger, until
from tests.sandbox_faults import Latency, Status


class Running:
    """`ott-worker run` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.process = process
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with contextlib.suppress(OSError), urllib.request.urlopen(self._url + path, timeout=5) as response:
            return str(response.read().decode())
        return ""

    def metric(self, name: str) -> float:
        values = [
            line.split()[-1] for line in self.get("/metrics").splitlines() if line.startswith(name + " ")
        ]
        return float(values[0]) if values else -1.0

    def end(self) -> float:
        """Seconds from SIGTERM to the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began


@contextlib.asynccontextmanager
async def running(rig: Rig, stderr: Any = subprocess.DEVNULL, **more: Any) -> AsyncIterator[Running]:
    port = free_port()
    given = environment(rig.settings()) | {"OTT_ADMIN_PORT": str(port), **more.pop("given", {})}
    process = subprocess.Popen([sys.executable, "-m", "worker", "run"], env=given, stderr=stderr, **more)
    worker = Running(process, port)
    try:
        await until(lambda: '"ready"' in worker.get("/readyz") or process.poll() is not None, "readiness")
        assert process.poll() is None
        yield worker
    finally:
        process.kill()
        process.wait()


async def requester_of(rig: Rig) -> Requester:
    return await rig.requester_for(rig.settings())


@pytest.mark.parametrize("trouble", ["gone", "stalled", "full", "closed"])
async def test_a_standard_error_that_takes_nothing_stops_nothing(rig, trouble):
    reader, writer = os.pipe()
    if trouble == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    shell = {"preexec_fn": lambda: os.close(2)} if trouble == "closed" else {}
    given = {"OTT_LOG_LEVEL": "debug", "OTT_GATE_AFTER": "2"}
    async with running(rig, writer, given=given, **shell) as worker:
        if trouble == "gone":
            os.close(reader)
        requester = await requester_of(rig)
        rig.sandbox.faults.add(Status(path="registration", status=503))
        waiting = [await requester.publish(messenger(f"page-{n}")) for n in range(3)]
        await until(lambda: worker.metric("ott_gate_closed") == 1, "the outage")
        rig.sandbox.heal()
        await requester.all_registered(waiting)
        for sent in [await requester.publish(b"{}") for _ in range(2000 if trouble == "stalled" else 1)]:
            await requester.reply(sent)
        if trouble != "closed":
            await until(lambda: worker.metric("ott_log_lines_dropped_total") > 0, "dropped lines")
        assert worker.end() < 10
        assert worker.process.returncode == 0
    with contextlib.suppress(OSError):
        os.close(reader)
    os.close(writer)


async def test_few_descriptors_are_left_to_the_broker_and_the_admin_server(rig):
    rig.sandbox.faults.add(Latency(path="registration", seconds=1))
    few = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))}
    async with running(rig, given={"OTT_PREFETCH": "1000"}, **few) as worker:
        requester = await requester_of(rig)
        sent = [await requester.publish(messenger(f"page-{n}")) for n in range(300)]
        await until(lambda: worker.metric("ott_requests_in_flight") > 100, "many requests in flight")
        assert '"live"' in worker.get("/livez")
        rig.sandbox.heal()
        await requester.all_registered(sent)
        assert worker.metric("ott_gate_closings_total") == 0


async def test_a_keys_file_that_becomes_empty_keeps_the_last_keys(rig, tmp_path):
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("\ufeffone:" + "A" * 43 + "=\n")
    with log.open("wb") as file:
        async with running(rig, file, given={"OTT_DEAD_LETTER_KEYS_FILE": str(keys)}):
            keys.write_text(" ,\n")
            requester = await requester_of(rig)
            await requester.ask(b'{"pageId": "s3cret"}')
            letter = await (await requester.channel.get_queue(f"{requester.prefix}.dead", ensure=False)).get()
            assert letter is not None
            assert b"s3cret" not in letter.body
            assert letter.headers["x-ott-sealed"] == "one"
            await letter.ack()
        assert '"variable": "OTT_DEAD_LETTER_KEYS_FILE"' in log.read_text()
        assert "the last valid value stays in use" in log.read_text()


async def test_the_soft_limit_of_descriptors_is_raised(rig):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))}
    async with running(rig, **low) as worker:
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        (line,) = [each for each in limits.splitlines() if each.startswith("Max open files")]
        assert line.split()[3] == line.split()[4] == str(hard)
