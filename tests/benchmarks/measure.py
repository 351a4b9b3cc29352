"""One run: a queue filled, a contender started on it, its CPU time and the requests counted."""

import asyncio
import mmap
import secrets
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.benchmarks.broker import Broker
from tests.benchmarks.contender import Contender, requests
from tests.benchmarks.environment import LOG, Environment
from tests.benchmarks.process import Process
from worker.amqp.connection import connect
from worker.broker import topology
from worker.settings import load_settings

HERE = Path(__file__).parent
POLL = 0.01  # seconds
STALL_TIMEOUT = 60.0  # seconds without a request


@dataclass(frozen=True)
class Work:
    """What is to be done. `seconds` bounds the measured part."""

    requests: int = 15_000
    resources: int = 1_000
    size: int = 1_000  # bytes of a body
    latency: float = 0.0  # seconds that the upstream takes
    prefetch: int = 200
    seconds: float = 10.0
    warm: int = 1_500  # requests before the measured part


@dataclass(frozen=True)
class Run:
    """What one run came to, counted after the first requests."""

    requests: int
    seconds: float
    cpu: float  # microseconds for each request
    memory: float  # megabytes at the highest
    first_reply: float  # seconds from the start of the program to the first reply in its queue

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


class Upstream:
    """The upstream's process. Use as a context manager."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    def __enter__(self) -> Self:
        self._file = tempfile.NamedTemporaryFile()
        self._file.truncate(8)
        self._count = mmap.mmap(self._file.fileno(), 8, access=mmap.ACCESS_READ)
        command = [sys.executable, str(HERE / "upstream.py"), self._file.name, str(self._latency)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._count.close()
        self._file.close()

    @property
    def requests(self) -> int:
        """Registrations that were answered."""
        return int(struct.unpack("<Q", self._count[:])[0])


@dataclass
class Stage:
    """Everything that one run needs, standing."""

    broker: Broker
    upstream: Upstream
    prefix: str
    settings: dict[str, str]
    queue: str
    replies: str


@asynccontextmanager
async def stage(contender: Contender, amqp_url: str, work: Work) -> AsyncIterator[Stage]:
    """Queues and upstream for one contender; nothing of it is left behind."""
    prefix = f"benchmark-{secrets.token_hex(4)}"
    names = topology.Topology(prefix)
    queue, replies = names.requests, f"{prefix}.answers"
    async with Broker(amqp_url) as broker:
        with Upstream(work.latency) as upstream:
            settings = {
                **_ours(amqp_url, prefix, upstream.url, work),
                "BENCH_AMQP_URL": amqp_url,
                "BENCH_QUEUE": queue,
                "BENCH_REPLIES": replies,
                "BENCH_URL": f"{upstream.url}/ott/v1/registration",
                "BENCH_PREFETCH": str(work.prefetch),
            }
            try:
                await broker.declare(replies)
                if contender.is_ours:
                    await _declare_ours(settings)
                else:
                    await broker.declare(queue)
                yield Stage(broker, upstream, prefix, settings, queue, replies)
            finally:
                await broker.delete(sorted({queue, replies, *names.own_queues}), [names.entry, names.dead])


def _ours(amqp_url: str, prefix: str, url: str, work: Work) -> dict[str, str]:
    return {
        "OTT_AMQP_URL": amqp_url,
        "OTT_PREFIX": prefix,
        "OTT_MC_AUTH_URL": url,
        "OTT_MC_REST_URL": url,
        "OTT_MC_CLIENT_ID": "benchmark",
        "OTT_MC_CLIENT_SECRET": "benchmark",
        "OTT_PREFETCH": str(work.prefetch),
        "OTT_ADMIN_PORT": "0",
    }


async def _declare_ours(variables: Mapping[str, str]) -> None:
    settings = load_settings(amqp_url=variables["OTT_AMQP_URL"], prefix=variables["OTT_PREFIX"])
    connection = await connect(settings, "benchmark")
    try:
        await topology.ensure(connection, settings)
    finally:
        await connection.close()


async def run(contender: Contender, environment: Environment, amqp_url: str, work: Work) -> Run:
    """Fill a queue, start the contender on it, and measure until nearly all is done or time is up."""
    async with stage(contender, amqp_url, work) as on:
        await on.broker.fill(on.queue, requests(work.resources, work.size, on.replies), work.requests)
        started = time.perf_counter()
        with Process(contender.command(environment), on.settings, LOG) as process:
            await _until(on.upstream, 1, process)
            while not await on.broker.count(on.replies):
                await asyncio.sleep(POLL)
            first = time.perf_counter() - started
            await _until(on.upstream, work.warm, process)
            return await _measure(on, process, work, first)


async def _measure(on: Stage, process: Process, work: Work, first: float) -> Run:
    began, cpu, before = time.perf_counter(), process.cpu(), on.upstream.requests
    enough = min(work.requests - 1, int(work.requests * 0.97))
    await _until(on.upstream, enough, process, began + work.seconds)
    # A slow upstream answers in waves: counted is from the end of one to the end of another.
    ended = await _next_lull(on.upstream)
    done, spent = on.upstream.requests - before, process.cpu() - cpu
    seconds = ended - began
    memory = process.peak_memory()
    answered = await on.broker.count(on.replies)
    missing = on.upstream.requests - answered
    if missing > 2 * work.prefetch:
        raise RuntimeError(f"{missing} requests were forwarded and not answered")
    return Run(done, seconds, spent / done, memory, first)


async def _next_lull(upstream: Upstream) -> float:
    """The time of the last request before the next pause; now, where requests keep coming."""
    seen, changed = upstream.requests, time.perf_counter()
    stop = changed + 1.5
    await asyncio.sleep(POLL)
    while time.perf_counter() < stop:
        if upstream.requests != seen:
            seen, changed = upstream.requests, time.perf_counter()
        elif time.perf_counter() - changed > 0.1:
            break
        await asyncio.sleep(POLL)
    return changed


async def _until(upstream: Upstream, requests: int, process: Process, deadline: float = float("inf")) -> None:
    seen, changed = -1, time.perf_counter()
    while (count := upstream.requests) < requests and time.perf_counter() < deadline:
        process.check()
        if count != seen:
            seen, changed = count, time.perf_counter()
        elif time.perf_counter() - changed > STALL_TIMEOUT:
            raise RuntimeError(f"only {count} of {requests} requests arrived")
        await asyncio.sleep(POLL)
