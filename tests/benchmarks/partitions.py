"""What several active workers come to (contract §10): a full queue, so many workers, and how fast it empties.

python -m tests.benchmarks.partitions --workers 1 2 4
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import aio_pika

from tests.benchmarks.broker import fill
from tests.benchmarks.measure import Upstream
from tests.benchmarks.process import Process
from tests.rig import DEFAULT_URL, declare, delete_objects, messenger
from worker.broker.status import publish_order, read_workers
from worker.contract.settlement import Resource
from worker.contract.status import Order
from worker.partitions.router import partition_of
from worker.settings import Settings, load_settings

LATENCY = 0.05  # seconds that the upstream takes
RESOURCES = 1_000
WARM = 0.15  # of the requests, before the measured part
BEGINS = 120.0  # seconds at most until the first call


def _request(number: int) -> aio_pika.Message:
    return aio_pika.Message(messenger(str(10**9 + number % RESOURCES)), delivery_mode=2)


async def _measure(url: str, workers: int, partitions: int, prefetch: int, requests: int) -> str:
    prefix = f"benchmark.{secrets.token_hex(4)}"
    settings = load_settings(amqp_url=url, prefix=prefix, partitions=partitions)
    with Upstream(LATENCY) as upstream, contextlib.ExitStack() as stack:
        try:
            await declare(settings)
            await fill(url, f"{prefix}.requests", _request, requests)
            # They all begin together.
            await publish_order(settings, _order("pause"))
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
            while len(await read_workers(settings)) < workers:
                await asyncio.sleep(0.1)
            await publish_order(settings, _order("resume"))
            await _until(upstream, int(requests * WARM))
            begun, first = time.perf_counter(), upstream.requests
            before = [process.cpu() for process in processes]
            await _until(upstream, int(requests * 0.97))
            seconds, done = time.perf_counter() - begun, upstream.requests - first
            spent = {p.pid: (p.cpu() - cpu) / done for p, cpu in zip(processes, before, strict=True)}
            columns = [workers, partitions, f"{done / seconds:.0f}", f"{sum(spent.values()):.0f}"]
            columns += ["-", "-", "-"] if partitions == 1 else await _shares(settings, workers, spent)
            return f"| {' | '.join(map(str, columns))} |"
        finally:
            stack.close()
            await delete_objects(url, prefix)


def _order(order: Literal["pause", "resume"]) -> Order:
    return Order.now(order, "all workers begin together", by="benchmark")


async def _until(upstream: Upstream, requests: int) -> None:
    deadline = time.monotonic() + BEGINS
    while upstream.requests < requests:
        assert time.monotonic() < deadline, f"{upstream.requests} of {requests} requests"
        await asyncio.sleep(0.01)


async def _shares(settings: Settings, workers: int, spent: dict[int, float]) -> list[str]:
    """What the router spends on a request, what a partition's worker does, and the requests of the busiest
    worker by those of the average one. `spent` has the microseconds for each request of each process."""
    homes = Counter(
        partition_of(Resource(None, "messenger", str(10**9 + n)), settings.partitions)
        for n in range(RESOURCES)
    )
    shares = dict.fromkeys(spent, 0.0)
    for worker in await read_workers(settings):
        pid = int(worker.place.rpartition(":")[2])
        shares[pid] = sum(homes[partition] for partition in worker.partitions) / RESOURCES
    spread = f"{max(shares.values()) * workers:.2f}"
    if workers == 1:
        return ["-", "-", spread]
    # Each spends the same on a request of its partitions; the router, the busiest for its share, has more.
    costs = []
    for router, own in spent.items():
        settling = (sum(spent.values()) - own) / max(1 - shares[router], 0.01)
        costs.append((own - shares[router] * settling, settling))
    routing, settling = max(costs)
    return [f"{routing:.0f}", f"{settling:.0f}", spread]


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
    print(
        "| workers | partitions | requests/s | CPU µs a request, all workers | router | partition "
        "| busiest ÷ mean |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = [(1, 1), *((workers, given.partitions) for workers in given.workers)]
    for workers, partitions in rows:
        row = _measure(given.url, workers, partitions, given.prefetch, given.requests)
        print(asyncio.run(row), flush=True)


if __name__ == "__main__":
    main()
