"""What several active workers come to (contract §10): a full queue, so many workers, and how fast it empties.

python -m tests.benchmarks.partitions --workers 1 2 4
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import tempfile
import time
from collections import Counter
from pathlib import Path

import aio_pika

from tests.benchmarks.measure import WORKER, Program, Upstream, fill, variables
from tests.rig import DEFAULT_URL, declare, delete_objects, messenger
from tests.support.markdown import print_head, print_row
from worker.broker.status import publish_order, read_workers
from worker.contract.settlement import Resource
from worker.contract.status import Order
from worker.partitions.router import partition_of
from worker.settings import Settings, load_settings

LATENCY = 0.05  # seconds, of the upstream
PAGES = [str(10**9 + number) for number in range(1_000)]
WARM = 0.15  # of the requests, before the measured part


def _request(number: int) -> aio_pika.Message:
    return aio_pika.Message(messenger(PAGES[number % len(PAGES)]), delivery_mode=2)


async def _measure(url: str, workers: int, partitions: int, prefetch: int, requests: int) -> None:
    prefix = f"benchmark.{secrets.token_hex(4)}"
    settings = load_settings(amqp_url=url, prefix=prefix, partitions=partitions)
    async with contextlib.AsyncExitStack() as stack:
        upstream = stack.enter_context(Upstream(LATENCY))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.push_async_callback(delete_objects, url, prefix)
        await declare(settings)
        await fill(url, f"{prefix}.requests", _request, requests)
        why, by = "all workers begin together", "benchmark"
        await publish_order(settings, Order.now("pause", why, by=by))
        given = variables(url, prefix, upstream.url, OTT_PARTITIONS=partitions, OTT_PREFETCH=prefetch)
        programs = [
            stack.enter_context(Program(WORKER, given, folder / f"{number}.log")) for number in range(workers)
        ]
        while len(await read_workers(settings)) < workers:
            await asyncio.sleep(0.1)
        await publish_order(settings, Order.now("resume", why, by=by))
        await upstream.reached(int(requests * WARM), programs)
        begun, first = time.perf_counter(), upstream.requests
        before = [program.cpu() for program in programs]
        await upstream.reached(int(requests * 0.97), programs)
        seconds, done = time.perf_counter() - begun, upstream.requests - first
        spent = {p.pid: (p.cpu() - cpu) / done for p, cpu in zip(programs, before, strict=True)}
        shares = ["-", "-", "-"] if partitions == 1 else await _shares(settings, spent)
        print_row(workers, partitions, f"{done / seconds:.0f}", f"{sum(spent.values()):.0f}", *shares)


async def _shares(settings: Settings, spent: dict[int, float]) -> list[str]:
    """What the router spends on a request, what a partition's worker does, and the requests of the busiest
    worker by those of the average one. `spent` has the microseconds for each request of each process."""
    homes = Counter(partition_of(Resource(None, "messenger", page), settings.partitions) for page in PAGES)
    shares = dict.fromkeys(spent, 0.0)
    for worker in await read_workers(settings):
        pid = int(worker.place.rpartition(":")[2])
        shares[pid] = sum(homes[partition] for partition in worker.partitions) / len(PAGES)
    spread = f"{max(shares.values()) * len(spent):.2f}"
    if len(spent) == 1:
        return ["-", "-", spread]
    # Each spends the same on a request of its partitions; the router, the busiest for its share, has more.
    costs = []
    for router, own in spent.items():
        settling = (sum(spent.values()) - own) / max(1 - shares[router], 0.01)
        costs.append((own - shares[router] * settling, settling))
    return [*(f"{cost:.0f}" for cost in max(costs)), spread]


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--prefetch", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL))
    given = parser.parse_args()
    head = ("workers", "partitions", "requests/s", "CPU µs per request, all workers")
    print_head(*head, "router", "partition", "busiest ÷ mean")
    for workers, partitions in [(1, 1), *((workers, given.partitions) for workers in given.workers)]:
        await _measure(given.url, workers, partitions, given.prefetch, given.requests)


if __name__ == "__main__":
    asyncio.run(main())
