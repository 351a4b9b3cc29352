"""The campaign on a cluster of three nodes: every fault at random moments under load, and a table.

python -m tests.faults.cluster_campaign --seed 1 --strikes 10 --handling pause_minority
"""

import argparse
import asyncio
import logging
import random
import signal
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

from tests.faults.campaign import HEADING, line, progress
from tests.faults.cluster import Cluster
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_world import ClusterWorld
from tests.faults.faults import Fault, endure
from tests.faults.network import Network

REQUESTS = 300  # for each strike
RATE = 100.0  # requests a second
WORKERS = 3


def main() -> int:
    """Run it; exit code 1 where a promise did not hold."""
    arguments = _arguments()
    logging.disable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is put away
    print(HEADING.replace("recovery", "silence"), flush=True)
    with Network() as network:
        return asyncio.run(_run(arguments, network))


async def _run(arguments: argparse.Namespace, network: Network) -> int:
    broken = 0
    async with Cluster(network, arguments.handling) as cluster:
        for name in arguments.faults:
            row, problems = await _row(CLUSTER_FAULTS[name], arguments, cluster)
            print(row, flush=True)
            for problem in problems:
                print(f"  {problem}", file=sys.stderr, flush=True)
            broken = broken or bool(problems)
            await cluster.revive()
    return int(broken)


async def _row(fault: Fault, arguments: argparse.Namespace, cluster: Cluster) -> tuple[str, list[str]]:
    seed = random.Random(f"{arguments.seed} {fault.name}").randrange(2**32)
    requests = REQUESTS * arguments.strikes
    prefix = f"campaign.{uuid4().hex[:8]}"
    environment = dict(fault.environment)
    if arguments.leaders_lease:
        environment["FAULTS_LEADERS_LEASE"] = "true"
    with tempfile.TemporaryDirectory(prefix="ott-campaign-") as folder:
        async with ClusterWorld(cluster, prefix, Path(folder), seed=seed, environment=environment) as world:
            telling = asyncio.create_task(progress(world, fault, requests))
            problems: list[str] = []
            try:
                await world.start(WORKERS)
                await endure(world, fault, requests, arguments.strikes, RATE)
                findings = await world.findings()
            except AssertionError as error:
                problems.append(str(error))
                await cluster.revive()
                findings = await world.findings()
            finally:
                telling.cancel()
            return line(fault, findings, world), problems + findings.broken


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strikes", type=int, default=10, help="for each fault")
    parser.add_argument(
        "--handling",
        choices=("pause_minority", "ignore", "autoheal"),
        default="pause_minority",
        help="RabbitMQ's cluster_partition_handling",
    )
    parser.add_argument(
        "--leaders-lease",
        action="store_true",
        help="leave the protection out that most of a queue's nodes must confirm a lease",
    )
    parser.add_argument(
        "--faults",
        type=lambda text: [name.strip() for name in text.split(";")],
        default=list(CLUSTER_FAULTS),
        help="names, separated by semicolons; all by default: " + "; ".join(CLUSTER_FAULTS),
    )
    arguments = parser.parse_args()
    for name in arguments.faults:
        if name not in CLUSTER_FAULTS:
            parser.error(f"no fault is called {name!r}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
