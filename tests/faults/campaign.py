"""The campaign: every fault, again and again at random moments under load, and a table of what came of it.

python -m tests.faults.campaign --seed 1 --requests 10000 --faults "kill -9; TCP reset"
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.faults.checker import Findings
from tests.faults.faults import FAULTS, Fault, endure
from tests.faults.node import Node
from tests.faults.world import World
from tests.rig import DEFAULT_URL

RATE = 300.0  # requests a second
STRIKE_EVERY = 500  # requests
SLOW_STRIKE_EVERY = 2_500  # requests, where one strike takes half a minute
COLUMNS = (
    "fault", "operations", "injected", "lost", "unexpected", "duplicates", "order violations",
    "recovery median s", "worst s", "peak memory MiB",
)  # fmt: skip
HEADING = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)


def main() -> int:
    """Run it; exit code 1 where a promise did not hold."""
    arguments = _arguments()
    logging.disable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is put away
    node = Node()
    broken = False
    print(HEADING, flush=True)
    try:
        if any(FAULTS[name].own_node for name in arguments.faults):
            node.up()
        for name in arguments.faults:
            row, problems = asyncio.run(_row(FAULTS[name], arguments, node))
            print(row, flush=True)
            for problem in problems:
                print(f"  {problem}", file=sys.stderr, flush=True)
            broken = broken or bool(problems)
    finally:
        node.down()
    return int(broken)


async def _row(fault: Fault, arguments: argparse.Namespace, node: Node) -> tuple[str, list[str]]:
    strikes = max(1, arguments.requests // (SLOW_STRIKE_EVERY if fault.slow else STRIKE_EVERY))
    seed = random.Random(f"{arguments.seed} {fault.name}").randrange(2**32)
    with tempfile.TemporaryDirectory(prefix="ott-campaign-") as folder:
        async with World(
            node.url if fault.own_node else arguments.url,
            f"campaign.{uuid4().hex[:8]}",
            Path(folder),
            node=node if fault.own_node else None,
            seed=seed,
            heartbeat=fault.heartbeat,
            user=fault.user,
            behind_tls=fault.behind_tls,
            environment=fault.environment,
        ) as world:
            telling = asyncio.create_task(progress(world, fault, arguments.requests))
            problems: list[str] = []
            try:
                async with fault.around(world) if fault.around else contextlib.nullcontext():
                    await world.start(fault.workers)
                    await endure(world, fault, arguments.requests, strikes, arguments.rate)
                    findings = await world.findings()
            except AssertionError as error:
                problems.append(str(error))
                findings = await world.findings()
            finally:
                telling.cancel()
            return line(fault, findings, world), problems + findings.broken


def line(fault: Fault, findings: Findings, world: World) -> str:
    """A row of the table."""
    times = world.recoveries or [0.0]
    cells = (
        fault.name, findings.operations, world.injected, findings.lost, findings.unexpected,
        findings.duplicates, findings.order_violations, f"{statistics.median(times):.2f}",
        f"{max(times):.2f}", findings.peak_memory >> 20,
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


async def progress(world: World, fault: Fault, requests: int) -> None:
    """Tell on standard error how far it is, until cancelled."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(5)
        spent = time.monotonic() - started
        answered = len(world.load.answered)
        print(
            f"{fault.name}: {answered}/{requests} answered, {world.injected} faults, {spent:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=10_000, help="for each fault")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument(
        "--faults",
        type=lambda text: [name.strip() for name in text.split(";")] if text else list(FAULTS),
        default=list(FAULTS),
        help="names, separated by semicolons; all by default: " + "; ".join(FAULTS),
    )
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL), help="the broker")
    arguments = parser.parse_args()
    for name in arguments.faults:
        if name not in FAULTS:
            parser.error(f"no fault is called {name!r}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
