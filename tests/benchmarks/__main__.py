"""Measure the worker beside the bare loop, and against its limits: `python -m tests.benchmarks --help`.

Each contender is a program that does the same work until SIGTERM: take a request from PREFIX.requests, POST
its body, publish a persistent, confirmed reply to the request's reply_to queue, acknowledge.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import aio_pika

from tests.benchmarks.measure import POLL, QUORUM, WORKER, Program, Upstream, fill, variables
from tests.rig import DEFAULT_URL, declare, delete_objects, messenger
from tests.support.markdown import print_head, print_row
from worker.amqp.connection import connect
from worker.settings import load_settings

OURS = "ott-worker"
LOOP = [sys.executable, str(Path(__file__).with_name("aio_pika_loop.py"))]
CONTENDERS = {OURS: WORKER, "aio-pika + aiohttp": LOOP}
LATENCIES = (0.0, 0.05, 0.2, 1.0)  # seconds
PREFETCH = 200
RESOURCES = 1_000
SIZE = 1_000  # bytes of a body
SECONDS = 10.0  # at most, of the measured part


class Run(NamedTuple):
    """What one run came to, counted after the first requests."""

    rate: float  # requests a second
    cpu: float  # microseconds for each request
    memory: float  # megabytes at the highest
    first_reply: float  # seconds from the start of the program to the first reply in its queue


def request(number: int, replies: str) -> aio_pika.Message:
    page = f"page-{number % RESOURCES}"
    padding = SIZE - len(messenger(page, pageAccessToken=""))
    return aio_pika.Message(
        messenger(page, pageAccessToken="x" * padding),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=f"request-{number}",
        correlation_id=f"correlation-{number}",
        reply_to=replies,
    )


async def run(
    url: str, name: str, what: str, *, requests: int = 15_000, warm: int = 1_500, latency: float = 0.0
) -> Run:
    """Fill a queue, start the contender on it, and measure until nearly all is done or time is up; nothing
    of it is left behind."""
    prefix = f"benchmark-{secrets.token_hex(4)}"
    replies = f"{prefix}.answers"
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(Upstream(latency))
        channel = await (await stack.enter_async_context(await aio_pika.connect(url))).channel()

        async def answered() -> int:
            queue = await channel.declare_queue(replies, durable=True, arguments=QUORUM)
            return queue.declaration_result.message_count or 0

        await answered()
        stack.push_async_callback(channel.queue_delete, replies)
        stack.push_async_callback(delete_objects, url, prefix)
        if name == OURS:
            await declare(load_settings(amqp_url=url, prefix=prefix))
        else:
            await channel.declare_queue(f"{prefix}.requests", durable=True, arguments=QUORUM)
        await fill(url, f"{prefix}.requests", partial(request, replies=replies), requests)
        given = variables(url, prefix, upstream.url, OTT_PREFETCH=PREFETCH)
        started = time.perf_counter()
        program = stack.enter_context(Program(CONTENDERS[name], given, folder / "log"))
        await upstream.reached(1, [program])
        while not await answered():
            await asyncio.sleep(POLL)
        first = time.perf_counter() - started
        await upstream.reached(warm, [program])
        began, cpu, before = time.perf_counter(), program.cpu(), upstream.requests
        await upstream.reached(min(requests - 1, int(requests * 0.97)), [program], began + SECONDS)
        # A slow upstream answers in waves: counted is from the end of one to the end of another.
        seconds = await upstream.next_lull() - began
        done, spent = upstream.requests - before, program.cpu() - cpu
        if (missing := upstream.requests - await answered()) > 2 * PREFETCH:
            raise RuntimeError(f"{missing} requests were forwarded and not answered")
        made = Run(done / seconds, spent / done, program.peak_memory(), first)
    told = f"{name} {what}: {made.rate:.0f}/s, {made.cpu:.0f} µs, {made.memory:.0f} MB"
    print(told, file=sys.stderr, flush=True)
    return made


async def compare(given: argparse.Namespace) -> None:
    """All contenders, taking turns, so that what else the machine does falls on all of them."""
    runs: dict[str, list[Run]] = {name: [] for name in given.contender}
    for number in range(given.rounds):
        for name, made in runs.items():
            made.append(await run(given.amqp_url, name, f"round {number + 1}"))
    print("\n### The same work, side by side\n\nMedian (lowest to highest).\n")
    head = ("", "CPU µs per request", "worker ÷ this, pair by pair", "requests/s", "worker ÷ this", "peak MB")
    print_head(*head, "s to first reply")
    for name, made in runs.items():
        pairs = list(zip(runs[OURS], made, strict=True))
        print_row(
            f"**{name}**" if name == OURS else name,
            _spread([each.cpu for each in made], 0),
            _spread([ours.cpu / each.cpu for ours, each in pairs], 2),
            _spread([each.rate for each in made], 0),
            _spread([ours.rate / each.rate for ours, each in pairs], 2),
            f"{max(each.memory for each in made):.0f}",
            f"{median(each.first_reply for each in made):.1f}",
        )


def _spread(values: Sequence[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


async def latency(given: argparse.Namespace) -> None:
    """Throughput against what prefetch and latency allow."""
    about = f"Prefetch {PREFETCH}; the limit is min(prefetch ÷ latency, one core ÷ CPU per request at 0 ms)."
    print(f"\n### Upstream latency\n\n{about}\n")
    print_head("upstream latency", "requests/s", "limit", "reached", "CPU µs")
    alone = 0.0  # requests a second that one core allows
    for seconds in LATENCIES:
        bound = PREFETCH / seconds if seconds else float("inf")
        few = {"requests": int(bound * 14), "warm": int(bound * 2)} if bound <= 1_200 else {}
        made = await run(given.amqp_url, OURS, f"{seconds * 1000:.0f} ms", latency=seconds, **few)
        alone = alone or 1_000_000 / made.cpu
        limit = min(bound, alone)
        cells = (f"{made.rate:.0f}", f"{limit:.0f}", f"{made.rate / limit:.1%}", f"{made.cpu:.0f}")
        print_row(f"{seconds * 1000:.0f} ms", *cells)


SCENARIOS = {"compare": compare, "latency": latency}


async def _circumstances(amqp_url: str) -> str:
    connection = await connect(load_settings(amqp_url=amqp_url), "benchmark")
    rabbitmq = connection.server_version
    await connection.close()
    packages = ", ".join(f"{name} {version(name)}" for name in ("aio-pika", "aiormq", "aiohttp", "uvloop"))
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = cpus[0].partition(": ")[2] if cpus else platform.machine()
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores ({cpu}), broker, upstream and "
        f"contender together. RabbitMQ {rabbitmq}, Python {platform.python_version()}, {packages}."
    )


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Needs a RabbitMQ that is otherwise idle; takes about 5 minutes.",
        epilog="Example: python -m tests.benchmarks --only compare --contender ott-worker",
    )
    parser.add_argument("--amqp-url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL))
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each comparison (default 5)")
    parser.add_argument("--contender", nargs="+", default=CONTENDERS, help="names; all by default")
    given = parser.parse_args()
    print(await _circumstances(given.amqp_url))
    for name in given.only:
        await SCENARIOS[name](given)


if __name__ == "__main__":
    asyncio.run(main())
