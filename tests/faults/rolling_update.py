"""A rolling update from an earlier release: its workers are replaced one by one by this release's while
requests come, and for a while both are at work. Needs the whole history of the repository.

python -m tests.faults.rolling_update COMMIT --partitions 1 4
"""

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from tests.faults.load import wait_for
from tests.faults.workers import Worker
from tests.faults.world import World
from tests.rig import DEFAULT_URL

ROOT = Path(__file__).parents[2]
WORKERS = 2
RATE = 60.0  # requests a second
SIDE_BY_SIDE = 3.0  # seconds for which both releases are at work
COLUMNS = ("partitions", "requests", "lost", "order violations", "repeated replies", "steps back")


async def row(url: str, release: Path, partitions: int, requests: int) -> tuple[str, list[str]]:
    """Update under load; the table's line, and what is broken."""
    prefix = f"rolling.{uuid4().hex[:8]}"
    environment = {"OTT_PARTITIONS": str(partitions)} if partitions > 1 else {}
    with tempfile.TemporaryDirectory(prefix="ott-rolling-") as folder:
        async with World(url, prefix, Path(folder), environment=environment) as world:
            before = [await _start(world, release, number, Path(folder)) for number in range(WORKERS)]
            await wait_for(
                lambda: all(b"subscribed" in w.log.read_bytes() for w in before), "the old ones", 60
            )
            load = asyncio.create_task(world.load.publish(world.plan(requests), rate=RATE))
            for worker in before:
                await asyncio.sleep(SIDE_BY_SIDE)
                await world.workers.start()
                await asyncio.sleep(SIDE_BY_SIDE)
                world.struck()
                await worker.end()
            await load
            await world.drained()
            found = await world.findings()
            cells = (
                partitions,
                requests,
                found.lost,
                found.order_violations,
                found.duplicates,
                found.steps_back,
            )
            return "| " + " | ".join(map(str, cells)) + " |", found.broken


async def _start(world: World, release: Path, number: int, folder: Path) -> Worker:
    log = folder / f"old-{number}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTT_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", "run", cwd=release, stdout=output, stderr=output,
            env={**environment, **world.workers.environment, "PYTHONPATH": str(release)},
        )  # fmt: skip
    worker = Worker(number, process, log, None)
    world.workers.all.append(worker)
    return worker


def main() -> int:
    """Run it; exit code 1 where a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="of the release to update from")
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--requests", type=int, default=1_500)
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL), help="the broker")
    arguments = parser.parse_args()
    logging.disable()
    broken = False
    with tempfile.TemporaryDirectory(prefix="ott-release-") as release:
        tree = subprocess.run(["git", "archive", arguments.commit], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", release], input=tree.stdout, check=True)
        print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
        for partitions in arguments.partitions:
            line, problems = asyncio.run(row(arguments.url, Path(release), partitions, arguments.requests))
            print(line, *problems[:10], sep="\n", flush=True)
            broken |= bool(problems)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
