"""Faults of a cluster of three nodes, each as one strike: done at some moment under load, healed when it
returns. A strike returns the time (seconds since the epoch) from which recovery counts: that of the fault
itself, because a cluster must go on without the node that was lost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from tests.faults.cluster import TICK, TREE, ClusterNode
from tests.faults.cluster_world import ClusterWorld
from tests.faults.faults import PARTITIONED, active
from tests.faults.network import HOSTS, HUB
from tests.faults.world import Fault

ClusterStrike = Callable[[ClusterWorld], Awaitable[float | None]]
ANSWER_TIMEOUT = 60.0  # seconds for the first reply after a fault
# A partition is noticed within one and a quarter ticks. RabbitMQ 4.0 then tries for 7 s and more to reach the
# others before a minority pauses. If the partition ends in between, it is left with two databases, and stands
# still until nodes are restarted.
PARTED_FOR = TICK * 1.25 + (15 if TREE else 3)
PROBED_WITHIN = 2  # seconds; longer than a worker waits before it tries a call again

CLUSTER_FAULTS: dict[str, Fault] = {}


def _fault(name: str, **environment: str) -> Callable[[ClusterStrike], ClusterStrike]:
    """Note a strike under this name. After each one, a replay must be decided rightly."""

    def note(strike: ClusterStrike) -> ClusterStrike:
        async def strike_and_replay(world: ClusterWorld) -> float:
            healed_at = await strike(world) or time.time()
            await world.replay()
            return healed_at

        CLUSTER_FAULTS[name] = Fault(name, strike_and_replay, workers=3, environment=environment)
        return strike

    return note


async def _goes_on(world: ClusterWorld, since: float, *, parted: bool = False) -> float:
    """Wait for the first reply made after the fault, and heal; later replies say nothing of the fault. Where
    the nodes go on in parts, replies may wait on the side that nobody reads from."""
    if not world.cluster.stays_apart and not (parted and world.cluster.keeps_clients):
        await world.recovered(since, ANSWER_TIMEOUT)
    await world.cluster.revive()
    return since


async def _crash(world: ClusterWorld, node: ClusterNode) -> float:
    await asyncio.to_thread(node.kill)
    struck_at = time.time()
    return await _goes_on(world, struck_at)


async def _stop(world: ClusterWorld, node: ClusterNode) -> float:
    struck_at = time.time()
    await node.stop()
    return await _goes_on(world, struck_at)


async def _freeze(world: ClusterWorld, seconds: float) -> float:
    node = await world.cluster.leader(f"{world.prefix}.requests")
    frozen_at = time.time()
    node.freeze()
    await asyncio.sleep(seconds)
    node.thaw()
    return await _goes_on(world, frozen_at)


async def _part(world: ClusterWorld, side: Iterable[int], other: Iterable[int]) -> float:
    parted_at = time.time()
    await asyncio.to_thread(world.cluster.network.cut, tuple(side), tuple(other))
    await asyncio.sleep(PARTED_FOR)
    return await _goes_on(world, parted_at, parted=True)


def _leader(act: Callable[[ClusterWorld, ClusterNode], Awaitable[float]], of: str) -> ClusterStrike:
    """What is done to the leader of PREFIX.`of`."""

    async def strike(world: ClusterWorld) -> float:
        return await act(world, await world.cluster.leader(f"{world.prefix}.{of}"))

    return strike


def _others(*nodes: ClusterNode) -> list[int]:
    return [host for host in HOSTS if host not in {node.number for node in nodes}]


_fault("kill -9 of the leader of requests")(_leader(_crash, "requests"))
_fault("8 partitions: kill -9 of the leader of requests", **PARTITIONED)(_leader(_crash, "requests"))


@_fault("8 partitions: kill -9 of a partition's leader", **PARTITIONED)
async def kill_partition_leader(world: ClusterWorld) -> float:
    partition = world.rng.randint(1, int(PARTITIONED["OTT_PARTITIONS"]))
    return await _crash(world, await world.cluster.leader(f"{world.prefix}.requests.{partition}"))


_fault("8 partitions: kill -9 of the leader of their stream", **PARTITIONED)(_leader(_crash, "partitions"))
_fault("kill -9 of the leader of the journal")(_leader(_crash, "journal"))


@_fault("8 partitions: kill -9 of the router's node", **PARTITIONED)
@_fault("kill -9 of the active worker's node")
async def kill_workers_node(world: ClusterWorld) -> float:
    return await _crash(world, world.node_of(await active(world, 60)))


@_fault("kill -9 of a follower")
async def kill_follower(world: ClusterWorld) -> float:
    leader = await world.cluster.leader(f"{world.prefix}.requests")
    return await _crash(world, world.cluster.nodes[world.rng.choice(_others(leader))])


_fault("stop of the leader of requests")(_leader(_stop, "requests"))
_fault("stop of the leader of the journal")(_leader(_stop, "journal"))


@_fault("rolling restart")
async def rolling_restart(world: ClusterWorld) -> float:
    begun_at = time.time()
    for node in world.cluster.nodes.values():
        await node.stop()
        await world.cluster.revive()
    return await _goes_on(world, begun_at)


_fault("leader frozen for 5 s")(partial(_freeze, seconds=5))
_fault("leader frozen for 40 s")(partial(_freeze, seconds=40))


@_fault("leader transfer")
async def transfer(world: ClusterWorld) -> float:
    queue = f"{world.prefix}.requests"
    leader = await world.cluster.leader(queue)
    moved_at = time.time()
    await world.cluster.transfer(queue, world.cluster.nodes[world.rng.choice(_others(leader))])
    return moved_at


@_fault("partition: leader | rest")
async def part_leader(world: ClusterWorld) -> float:
    leader = await world.cluster.leader(f"{world.prefix}.requests")
    return await _part(world, [leader.number], _others(leader))


@_fault("8 partitions: router on the minority's side", **PARTITIONED)
@_fault("partition: worker on the minority's side")
async def part_worker(world: ClusterWorld) -> float:
    node = world.node_of(await active(world, 60))
    return await _part(world, [node.number], _others(node))


@_fault("partition: leader and worker | rest, Marketing Cloud back first")
async def part_from_all(world: ClusterWorld) -> None:
    """When the worker can make its calls again, others have registered newer versions."""
    node = world.node_of(await active(world, 60))
    queue = f"{world.prefix}.requests"
    if await world.cluster.leader(queue) is not node:
        await world.cluster.transfer(queue, node)
    network = world.cluster.network
    parted_at = time.time()
    await asyncio.to_thread(network.cut, [node.number], [*_others(node), HUB])
    await world.recovered(parted_at + 1, ANSWER_TIMEOUT)
    await asyncio.to_thread(network.join, [node.number], [HUB])
    await asyncio.sleep(PROBED_WITHIN)
    await world.cluster.revive()


@_fault("partition: partial")
async def part_partially(world: ClusterWorld) -> float:
    """Two nodes lose each other, and the third one sees both."""
    one, other = world.rng.sample(HOSTS, 2)
    return await _part(world, [one], [other])


@_fault("partition: flapping")
async def flap(world: ClusterWorld) -> float:
    leader = await world.cluster.leader(f"{world.prefix}.requests")
    begun_at = time.time()
    for _ in range(5):
        await asyncio.to_thread(world.cluster.network.cut, [leader.number], _others(leader))
        await asyncio.sleep(world.rng.uniform(0.5, TICK * 0.75))
        await asyncio.to_thread(world.cluster.network.heal)
        await asyncio.sleep(world.rng.uniform(0.5, 2))
    return await _goes_on(world, begun_at)


@_fault("majority lost and back")
async def lose_majority(world: ClusterWorld) -> None:
    for host in world.rng.sample(HOSTS, 2):
        await asyncio.to_thread(world.cluster.nodes[host].kill)
    await asyncio.sleep(5)
    await world.cluster.revive()


@_fault("all three killed")
async def kill_all(world: ClusterWorld) -> None:
    for node in world.cluster.nodes.values():
        await node.flush()
    for node in world.cluster.nodes.values():
        await asyncio.to_thread(node.kill)
    await world.cluster.revive()


@_fault("alarm on one node")
async def alarm(world: ClusterWorld) -> None:
    node = world.cluster.nodes[world.rng.choice(HOSTS)]
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.0001")
    await asyncio.sleep(3)
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")
