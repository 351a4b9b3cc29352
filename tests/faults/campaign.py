"""The campaign: every fault, again and again at random moments under load, and a table of what came of it.

python -m tests.faults.campaign --seed 1 --requests 10000 --faults "kill -9; TCP reset"
python -m tests.faults.campaign --cluster --strikes 10

With `--cluster` the faults are those of three nodes, on hosts of their own (network namespaces want root).
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from tests.faults.cluster import Cluster
from tests.faults.cluster_faults import CLUSTER_FAULTS
from tests.faults.cluster_world import ClusterWorld
from tests.faults.faults import FAULTS
from tests.faults.network import Network
from tests.faults.node import Node
from tests.faults.world import Fault, World, endure
from tests.rig import DEFAULT_URL
from tests.support.markdown import print_head, print_row

CLUSTER_REQUESTS = 300  # for each strike
CLUSTER_RATE = 100.0  # requests a second
RATE = 300.0  # requests a second
STRIKE_EVERY = 500  # requests
SLOW_STRIKE_EVERY = 2_500  # requests, where one strike takes half a minute
COLUMNS = (
    "fault", "operations", "injected", "lost", "unexpected", "duplicates", "order violations",
    "recovery median s", "worst s", "peak memory MiB",
)  # fmt: skip


def main() -> int:
    """Run it; exit code 1 where a promise did not hold."""
    arguments = _arguments()
    logging.disable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is put away
    print_head(*(name.replace("recovery", "silence") if arguments.cluster else name for name in COLUMNS))
    if arguments.cluster:
        with Network() as network:
            return asyncio.run(_in_a_cluster(arguments, network))
    node = Node()
    try:
        if any(FAULTS[name].own_node for name in arguments.faults):
            node.up()
        return max([asyncio.run(_alone(FAULTS[name], arguments, node)) for name in arguments.faults])
    finally:
        node.down()


async def _in_a_cluster(arguments: argparse.Namespace, network: Network) -> int:
    broken, lease = 0, {"FAULTS_LEADERS_LEASE": "true"} if arguments.leaders_lease else {}
    async with Cluster(network, arguments.handling) as cluster:
        for name in arguments.faults:
            fault = CLUSTER_FAULTS[name]
            make = partial(ClusterWorld, cluster, environment={**fault.environment, **lease})
            requests, strikes = CLUSTER_REQUESTS * arguments.strikes, arguments.strikes
            broken |= await _row(make, fault, arguments.seed, requests, strikes, CLUSTER_RATE)
            await cluster.revive()
    return broken


async def _alone(fault: Fault, arguments: argparse.Namespace, node: Node) -> int:
    strikes = max(1, arguments.requests // (SLOW_STRIKE_EVERY if fault.slow else STRIKE_EVERY))
    make = partial(
        World,
        node.url if fault.own_node else arguments.url,
        node=node if fault.own_node else None,
        heartbeat=fault.heartbeat,
        user=fault.user,
        behind_tls=fault.behind_tls,
        environment=fault.environment,
    )
    return await _row(make, fault, arguments.seed, arguments.requests, strikes, arguments.rate)


async def _row(
    make: Callable[..., World], fault: Fault, seed: int, requests: int, strikes: int, rate: float
) -> int:
    """Strike, print the row and what is broken; 1 where something is."""
    problems: list[str] = []
    own_seed = random.Random(f"{seed} {fault.name}").randrange(2**32)
    with tempfile.TemporaryDirectory(prefix="ott-campaign-") as folder:
        async with make(f"campaign.{uuid4().hex[:8]}", Path(folder), seed=own_seed) as world:
            telling = asyncio.create_task(_progress(world, fault, requests))
            try:
                async with fault.around(world) if fault.around else contextlib.nullcontext():
                    await world.start(fault.workers)
                    await endure(world, fault, requests, strikes, rate)
                    findings = await world.findings()
            except AssertionError as error:
                problems.append(str(error))
                await world.heal()
                findings = await world.findings()
            finally:
                telling.cancel()
            times = world.recoveries or [0.0]
            print_row(
                fault.name, findings.operations, world.injected, findings.lost, findings.unexpected,
                findings.duplicates, findings.order_violations, f"{statistics.median(times):.2f}",
                f"{max(times):.2f}", findings.peak_memory >> 20,
            )  # fmt: skip
    for problem in [*problems, *findings.broken]:
        print(f"  {problem}", file=sys.stderr, flush=True)
    return int(bool(problems or findings.broken))


async def _progress(world: World, fault: Fault, requests: int) -> None:
    """Tell on standard error how far it is, until cancelled."""
    started = time.monotonic()
    while True:
        await asyncio.sleep(5)
        told = f"{len(world.load.answered)}/{requests} answered, {world.injected} faults"
        print(f"{fault.name}: {told}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=10_000, help="for each fault")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    parser.add_argument("--faults", help="names, separated by semicolons; all by default")
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL), help="the broker")
    parser.add_argument("--cluster", action="store_true", help="faults of a cluster of three nodes")
    parser.add_argument("--strikes", type=int, default=10, help="for each fault of a cluster")
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
    arguments = parser.parse_args()
    known = CLUSTER_FAULTS if arguments.cluster else FAULTS
    arguments.faults = [name.strip() for name in (arguments.faults or ";".join(known)).split(";")]
    if unknown := [name for name in arguments.faults if name not in known]:
        parser.error(f"no fault is called {unknown[0]!r}; there are: {'; '.join(known)}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    return arguments


if __name__ == "__main__":
    sys.exit(main())
