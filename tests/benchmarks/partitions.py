"""What several active workers come to (contract §10): a full queue, so many workers, and how fast it empties.

python -m tests.benchmarks.partitions --workers 1 2 4
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aio_pika

from tests.benchmarks.measure import Upstream
from tests.benchmarks.process import Process
from tests.rig import DEFAULT_URL, delete_objects, messenger
from worker.amqp.connection import connect
from worker.broker import topology
from worker.broker.partition_log import read_partition_state
from worker.settings import Settings, load_settings

LATENCY = 0.05  # seconds that the upstream takes
RESOURCES = 1_000
WARM = 0.15  # of the requests, before the measured part
IN_FLIGHT = 500  # publishes
BEGINS = 120.0  # seconds at most until the first call


async def _fill(url: str, queue: str, requests: int) -> None:
    async with await aio_pika.connect(url) as connection:
        exchange = (await connection.channel()).default_exchange
        for start in range(0, requests, IN_FLIGHT):
            numbers = range(start, min(start + IN_FLIGHT, requests))
            messages = [
                aio_pika.Message(messenger(str(10**9 + n % RESOURCES)), delivery_mode=2) for n in numbers
            ]
            await asyncio.gather(*(exchange.publish(message, queue) for message in messages))


async def _measure(url: str, workers: int, partitions: int, prefetch: int, requests: int) -> str:
    prefix = f"benchmark.{secrets.token_hex(4)}"
    settings = load_settings(amqp_url=url, prefix=prefix, partitions=partitions)
    with Upstream(LATENCY) as upstream, contextlib.ExitStack() as stack:
        try:
            connection = await connect(settings, "benchmark")
            await topology.ensure(connection, settings)
            await connection.close()
            await _fill(url, f"{prefix}.requests", requests)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            variables = {
                "OTT_AMQP_URL": url,
                "OTT_PREFIX": prefix,
                "OTT_PARTITIONS": str(partitions),
                "OTT_PREFETCH": str(prefetch),
                "OTT_MC_AUTH_URL": upstream.url,
                "OTT_MC_REST_URL": upstream.url,
                "OTT_MC_CLIENT_ID": "benchmark",
                "OTT_MC_CLIENT_SECRET": "benchmark",
                "OTT_ADMIN_PORT": "0",
            }
            command = [sys.executable, "-m", "worker", "run"]
            processes = [
                stack.enter_context(Process(command, variables, folder / f"{number}.log"))
                for number in range(workers)
            ]
            await _until(upstream, int(requests * WARM))
            begun, first, cpu = time.perf_counter(), upstream.requests, _cpu(processes)
            await _until(upstream, int(requests * 0.97))
            seconds, done = time.perf_counter() - begun, upstream.requests - first
            spent = (_cpu(processes) - cpu) / done
            spread = "-" if partitions == 1 else await _spread(settings, workers)
            return f"| {workers} | {partitions} | {done / seconds:.0f} | {spent:.0f} | {spread} |"
        finally:
            stack.close()
            await delete_objects(url, prefix)


async def _until(upstream: Upstream, requests: int) -> None:
    deadline = time.monotonic() + BEGINS
    while upstream.requests < requests:
        assert time.monotonic() < deadline, f"{upstream.requests} of {requests} requests"
        await asyncio.sleep(0.01)


def _cpu(processes: list[Process]) -> float:
    return sum(process.cpu() for process in processes)


async def _spread(settings: Settings, workers: int) -> str:
    """Partitions of the busiest worker, by those of the average one."""
    owners = list((await read_partition_state(settings)).owners.values())
    counts = [owners.count(owner) for owner in set(owners)]
    counts += [0] * (workers - len(counts))
    return f"{max(counts) / statistics.mean(counts):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--prefetch", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL))
    given = parser.parse_args()
    print("| workers | partitions | requests/s | CPU µs a request, all workers | busiest ÷ mean |")
    print("|---|---|---|---|---|", flush=True)
    rows = [(1, 1), *((workers, given.partitions) for workers in given.workers)]
    for workers, partitions in rows:
        row = _measure(given.url, workers, partitions, given.prefetch, given.requests)
        print(asyncio.run(row), flush=True)


if __name__ == "__main__":
    main()
