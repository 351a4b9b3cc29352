"""Two measurements: an outage of an hour with 50,000 requests waiting, and the fail-over after kill -9.

    python -m tests.faults.measure outage --requests 50000
    python -m tests.faults.measure fail-over --times 20

The outage's clocks are shortened by 60: it lasts a minute, a delivery is held for 10 s instead of 600, and
the longest wait between probes is 0.5 s instead of 30.
"""

import argparse
import asyncio
import logging
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.faults.checker import Findings
from tests.faults.faults import FAULTS, QUICK_GATE, endure
from tests.faults.load import wait_for
from tests.faults.world import World
from tests.rig import DEFAULT_URL
from worker.sandbox.faults import Status

OUTAGE = 60.0  # seconds, for an hour
PROBE = 0.5  # seconds, for 30


async def outage(world: World, requests: int) -> Findings:
    """Publish while Marketing Cloud is down, wait the outage out, heal it, and wait until all is answered."""
    world.sandbox.heal()
    world.sandbox.faults.add(Status(path="registration", status=503))
    began = time.monotonic()
    await world.load.publish(world.plan(requests, resources=requests // 10))
    print(f"{requests} requests wait after {time.monotonic() - began:.0f} s", flush=True)
    memory = [world.workers.running[0].peak_memory >> 20]
    await asyncio.sleep(max(0.0, OUTAGE - (time.monotonic() - began)))
    memory.append(world.workers.running[0].peak_memory >> 20)
    probes = len(world.sandbox.history.registration_calls)
    world.sandbox.heal()
    healed_at = time.time()
    first = await world.load.reply_after(healed_at)
    await world.drained(within=600)
    spent = time.time() - healed_at
    most = max(reply.attempts for reply in world.load.replies if reply.status == "registered")
    findings = await world.findings()
    print(
        f"probes during the outage: {probes}; peak memory when all were queued, and at its end: {memory} MiB"
    )
    print(f"first reply {first:.2f} s after healing; all answered after {spent:.0f} s; most attempts {most}")
    print(f"lost {findings.lost}, unexpected {findings.unexpected}, order {findings.order_violations}")
    return findings


async def fail_over(world: World, times: int) -> Findings:
    """Kill the active worker again and again under load; time until the standby's first reply."""
    await wait_for(lambda: len(world.workers.running) == 2, "two workers")
    await endure(world, FAULTS["kill -9"], times * 300, times, rate=100)
    print(
        f"{len(world.recoveries)} fail-overs: median {statistics.median(world.recoveries):.2f} s, "
        f"worst {max(world.recoveries):.2f} s"
    )
    return await world.findings()


async def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("outage", "fail-over"))
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL))
    arguments = parser.parse_args()
    environment = {"FAULTS_CLOCKS": QUICK_GATE, "OTT_HOLD_LIMIT": "10", "OTT_PREFETCH": "200"}
    with tempfile.TemporaryDirectory(prefix="ott-measure-") as folder:
        options = {
            "environment": environment if arguments.what == "outage" else {},
            "seed": random.getrandbits(32),
        }
        async with World(arguments.url, f"measure.{uuid4().hex[:8]}", Path(folder), **options) as world:
            await world.start(1 if arguments.what == "outage" else 2)
            if arguments.what == "outage":
                findings = await outage(world, arguments.requests)
            else:
                findings = await fail_over(world, arguments.times)
    for problem in findings.broken:
        print(problem)
    return int(bool(findings.broken))


if __name__ == "__main__":
    logging.disable()
    raise SystemExit(asyncio.run(_main()))
