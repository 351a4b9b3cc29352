"""What the benchmarks share: programs and an upstream under measurement, and a queue that is filled."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import aio_pika

from tests.benchmarks.upstream import serve

WORKER = [sys.executable, "-m", "worker", "run"]
QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
IN_FLIGHT = 500  # publishes
POLL = 0.01  # seconds
STALL_TIMEOUT = 60.0  # seconds without a request
TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")  # microseconds


class Program(subprocess.Popen[bytes]):
    """A program that ends with its block, and what it costs, as /proc tells."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            environment = {**os.environ, **variables}
            super().__init__(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def __exit__(self, *_: object) -> None:
        self.terminate()
        try:
            self.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()

    def check(self) -> None:
        """Raise RuntimeError, with the last of its log, where it has ended."""
        if self.poll() is not None:
            end = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.args} ended with {self.returncode}:\n{end}")

    def cpu(self) -> float:
        """Microseconds of user and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) * TICK

    def peak_memory(self) -> float:
        """Megabytes of resident memory at the highest."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


class Upstream:
    """The upstream of upstream.py, in a process that ends with its block."""

    def __init__(self, latency: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._count = spawn.RawValue("Q", 0)
        self._port = spawn.SimpleQueue()
        self._process = spawn.Process(target=serve, args=(self._port, self._count, latency), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.url = f"http://127.0.0.1:{self._port.get()}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def requests(self) -> int:
        """Registrations that were answered."""
        return int(self._count.value)

    async def reached(self, requests: int, programs: Sequence[Program], until: float = float("inf")) -> None:
        """Return when so many were answered, or at this time. Raises RuntimeError where a program has ended,
        or no request comes any more."""
        seen, changed = -1, time.perf_counter()
        while (count := self.requests) < requests and time.perf_counter() < until:
            for program in programs:
                program.check()
            if count != seen:
                seen, changed = count, time.perf_counter()
            elif time.perf_counter() - changed > STALL_TIMEOUT:
                raise RuntimeError(f"only {count} of {requests} requests arrived")
            await asyncio.sleep(POLL)

    async def next_lull(self) -> float:
        """The time of the last request before the next pause; now, where requests keep coming."""
        seen, changed = self.requests, time.perf_counter()
        stop = changed + 1.5
        while (now := time.perf_counter()) < stop and now - changed < 0.1:
            await asyncio.sleep(POLL)
            if self.requests != seen:
                seen, changed = self.requests, time.perf_counter()
        return changed


def variables(amqp_url: str, prefix: str, cloud: str, **more: object) -> dict[str, str]:
    """The environment of a worker, or of a program that does the same."""
    given = {
        "OTT_AMQP_URL": amqp_url,
        "OTT_PREFIX": prefix,
        "OTT_MC_AUTH_URL": cloud,
        "OTT_MC_REST_URL": cloud,
        "OTT_MC_CLIENT_ID": "benchmark",
        "OTT_MC_CLIENT_SECRET": "benchmark",
        "OTT_ADMIN_PORT": "0",
    }
    return given | {name: str(value) for name, value in more.items()}


async def fill(url: str, queue: str, message: Callable[[int], aio_pika.Message], count: int) -> None:
    """Put `count` messages into the queue, in order."""
    async with await aio_pika.connect(url) as connection:
        exchange = (await connection.channel()).default_exchange
        for start in range(0, count, IN_FLIGHT):
            numbers = range(start, min(start + IN_FLIGHT, count))
            await asyncio.gather(*(exchange.publish(message(number), queue) for number in numbers))
