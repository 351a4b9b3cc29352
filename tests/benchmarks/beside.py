"""How long a live event waits beside a bulk job: `python -m tests.benchmarks.beside [--seconds 60]`.

An event is a request of a page of its own, published every quarter of a second while a job of 10,000 rows
runs. Prints the wait from its publish to its reply, for several upstreams. Needs RabbitMQ at OTT_AMQP_URL.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.acceptance.submit_command import write_pages
from tests.benchmarks.flow import Upstream
from tests.benchmarks.process import Process
from tests.rig import DEFAULT_URL, Requester, delete_objects, messenger, until
from tests.support.upstream import Behaviour, failing, limited, upstream

COMMAND = (sys.executable, "-m", "worker")
ROWS = 10_000
EVERY = 0.25  # seconds between two events


async def measure(
    url: str, name: str, behaviour: Behaviour, latency: float, seconds: float, folder: Path
) -> None:
    prefix = f"bench.{uuid4().hex[:8]}"
    rows, log = folder / "rows.csv", folder / "worker.log"
    write_pages(rows, range(ROWS))
    log.write_text("")
    async with upstream(Upstream(behaviour, latency).handle) as cloud:
        environment = {
            "OTT_AMQP_URL": url,
            "OTT_PREFIX": prefix,
            "OTT_ADMIN_PORT": "",
            "OTT_MC_AUTH_URL": cloud,
            "OTT_MC_REST_URL": cloud,
            "OTT_MC_CLIENT_ID": "i",
            "OTT_MC_CLIENT_SECRET": "s",
        }
        try:
            with Process([*COMMAND, "run"], environment, log):
                await until(lambda: "subscribed" in log.read_text(), "the worker")
                async with Requester(url, prefix) as requester:
                    waits, done = await _beside(requester, rows, environment, seconds)
        finally:
            await delete_objects(url, prefix)
    waits.sort()
    middle, late = statistics.median(waits), waits[int(len(waits) * 0.99)]
    print(
        f"| {name} | {done:,} | {len(waits)} | {middle:.2f} s | {late:.2f} s | {waits[-1]:.2f} s |",
        flush=True,
    )


async def _beside(
    requester: Requester, rows: Path, environment: dict[str, str], seconds: float
) -> tuple[list[float], int]:
    """The waits of the events, and how many rows the job has settled."""
    results = rows.with_suffix(f".{uuid4().hex}.jsonl")
    job = await asyncio.create_subprocess_exec(
        *(*COMMAND, "submit", str(rows), "--quiet", "--results", str(results), "--as-of", "now"),
        env={**os.environ, **environment},
    )
    waits: list[float] = []

    async def event(number: int) -> None:
        began = time.monotonic()
        await requester.ask(messenger(f"event{number}"))
        waits.append(time.monotonic() - began)

    try:
        await until(lambda: results.exists() and results.stat().st_size, "the first row")
        until_ = time.monotonic() + seconds
        async with asyncio.TaskGroup() as events:
            number = 0
            while time.monotonic() < until_ and job.returncode is None:
                events.create_task(event(number))
                number += 1
                await asyncio.sleep(EVERY)
    finally:
        with contextlib.suppress(ProcessLookupError):
            job.terminate()  # it deletes its reply queue
        await job.wait()
    return waits, sum(1 for _ in results.open("rb"))


async def table(url: str, seconds: float) -> None:
    print(
        "| upstream | rows settled | events | median wait | 99 % | longest |\n|---|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, behaviour, latency in (
            ("50 ms", failing(0, 503), 0.05),
            ("500 ms", failing(0, 503), 0.5),
            ("50 ms, 40 a second, 429 beyond", limited(40, 429, 0), 0.05),
            ("50 ms, 40 a second, 429 with Retry-After: 1", limited(40, 429, 1), 0.05),
        ):
            await measure(url, name, behaviour, latency, seconds, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    url = os.environ.get("OTT_AMQP_URL", DEFAULT_URL)
    asyncio.run(table(url, parser.parse_args().seconds))


if __name__ == "__main__":
    sys.exit(main())
