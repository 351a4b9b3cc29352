"""How long a live event waits beside a bulk job: `python -m tests.benchmarks.beside [--seconds 60]`.

An event is a request of a page of its own, published every quarter of a second while a job of 10,000 rows
runs. Prints the wait from its publish to its reply, for several upstreams. Needs RabbitMQ at OTT_AMQP_URL.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.acceptance.submit_command import write_pages
from tests.benchmarks.flow import Upstream
from tests.benchmarks.measure import WORKER, Program, variables
from tests.rig import DEFAULT_URL, Requester, delete_objects, messenger, until
from tests.support.markdown import print_head, print_row
from tests.support.upstream import Behaviour, failing, limited, upstream

ROWS = 10_000
EVERY = 0.25  # seconds between two events
UPSTREAMS = {
    "50 ms": (failing(0, 503), 0.05),
    "500 ms": (failing(0, 503), 0.5),
    "50 ms, 40 per second, 429 above": (limited(40, 429, 0), 0.05),
    "50 ms, 40 per second, 429 with Retry-After: 1": (limited(40, 429, 1), 0.05),
}


async def measure(url: str, name: str, behaviour: Behaviour, latency: float, seconds: float) -> None:
    """Print the row of one upstream."""
    prefix = f"bench.{uuid4().hex[:8]}"
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = await stack.enter_async_context(upstream(Upstream(behaviour, latency).handle))
        stack.push_async_callback(delete_objects, url, prefix)
        given, log = variables(url, prefix, cloud), folder / "worker.log"
        stack.enter_context(Program(WORKER, given, log))
        await until(lambda: "subscribed" in log.read_text(), "the worker")
        requester = await stack.enter_async_context(Requester(url, prefix))
        rows, results = write_pages(folder / "rows.csv", range(ROWS)), folder / "results.jsonl"
        command = [*WORKER[:-1], "submit", str(rows), "--quiet", "--results", str(results), "--as-of", "now"]
        job = stack.enter_context(Program(command, given, folder / "job.log"))  # it deletes its reply queue
        waits: list[float] = []

        async def event(number: int) -> None:
            began = time.monotonic()
            await requester.ask(messenger(f"event{number}"))
            waits.append(time.monotonic() - began)

        await until(lambda: results.exists() and results.stat().st_size, "the first row")
        stop, number = time.monotonic() + seconds, 0
        async with asyncio.TaskGroup() as events:
            while time.monotonic() < stop and job.poll() is None:
                events.create_task(event(number))
                number += 1
                await asyncio.sleep(EVERY)
        job.terminate()
        await asyncio.to_thread(job.wait)
        waits.sort()
        told = (
            f"{wait:.2f} s" for wait in (statistics.median(waits), waits[len(waits) * 99 // 100], waits[-1])
        )
        print_row(name, f"{len(results.read_bytes().splitlines()):,}", len(waits), *told)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    url, seconds = os.environ.get("OTT_AMQP_URL", DEFAULT_URL), parser.parse_args().seconds
    print_head("upstream", "rows settled", "events", "median wait", "99 %", "longest")
    for name, (behaviour, latency) in UPSTREAMS.items():
        await measure(url, name, behaviour, latency, seconds)


if __name__ == "__main__":
    asyncio.run(main())
