"""One run: a queue filled, a contender started on it, its CPU time and the requests counted."""

import asyncio
import functools
import mmap
import secrets
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aio_pika

from tests.benchmarks.broker import QUORUM, count, fill
from tests.benchmarks.contender import OURS, Contender, request
from tests.benchmarks.process import Process
from tests.rig import declare, delete_objects
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

    upstream: Upstream
    channel: aio_pika.abc.AbstractChannel
    settings: dict[str, str]
    queue: str
    replies: str


@asynccontextmanager
async def stage(contender: Contender, amqp_url: str, work: Work) -> AsyncIterator[Stage]:
    """Queues and upstream for one contender; nothing of it is left behind."""
    prefix = f"benchmark-{secrets.token_hex(4)}"
    queue, replies = f"{prefix}.requests", f"{prefix}.answers"
    with Upstream(work.latency) as upstream:
        settings = {
            "OTT_AMQP_URL": amqp_url,
            "OTT_PREFIX": prefix,
            "OTT_MC_AUTH_URL": upstream.url,
            "OTT_MC_REST_URL": upstream.url,
            "OTT_MC_CLIENT_ID": "benchmark",
            "OTT_MC_CLIENT_SECRET": "benchmark",
            "OTT_PREFETCH": str(work.prefetch),
            "OTT_ADMIN_PORT": "0",
            "BENCH_AMQP_URL": amqp_url,
            "BENCH_QUEUE": queue,
            "BENCH_URL": f"{upstream.url}/ott/v1/registration",
            "BENCH_PREFETCH": str(work.prefetch),
        }
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel()
            try:
                await channel.declare_queue(replies, durable=True, arguments=QUORUM)
                if contender is OURS:
                    await declare(load_settings(amqp_url=amqp_url, prefix=prefix))
                else:
                    await channel.declare_queue(queue, durable=True, arguments=QUORUM)
                yield Stage(upstream, channel, settings, queue, replies)
            finally:
                await channel.queue_delete(replies)
                await delete_objects(amqp_url, prefix)


async def run(contender: Contender, amqp_url: str, work: Work) -> Run:
    """Fill a queue, start the contender on it, and measure until nearly all is done or time is up."""
    async with stage(contender, amqp_url, work) as on:
        make = functools.partial(request, resources=work.resources, size=work.size, replies=on.replies)
        await fill(amqp_url, on.queue, make, work.requests)
        started = time.perf_counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            Process(contender.command, on.settings, Path(folder) / "log") as process,
        ):
            await _until(on.upstream, 1, process)
            while not await count(on.channel, on.replies):
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
    memory = process.peak_memory()
    missing = on.upstream.requests - await count(on.channel, on.replies)
    if missing > 2 * work.prefetch:
        raise RuntimeError(f"{missing} requests were forwarded and not answered")
    return Run(done, ended - began, spent / done, memory, first)


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
