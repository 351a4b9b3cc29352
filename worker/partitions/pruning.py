"""Deleting partitions that are no longer used (contract §10).

A partition is drained for good when the newest router, whose number of partitions leaves it out, has had its
barrier settled there: nothing older is left in it, and nothing new comes. Where no worker runs, it is enough
that it is empty.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from worker.amqp.connection import connected
from worker.amqp.queue import delete, exists, look
from worker.broker.status import read_workers
from worker.broker.topology import MOST_PARTITIONS, Topology
from worker.errors import TopologyError
from worker.partitions.log import Barrier, PartitionState, read_partition_state
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of a partition: deleted, or why not, and what was lost with it."""

    partition: int
    kept_because: str = ""
    lost: str = ""


async def prune(settings: Settings) -> AsyncIterator[Pruned]:
    """Delete what lies beyond OTT_PARTITIONS, the highest number first; with 1, all of them. Raises
    TopologyError, PublishRefused or BrokerUnreachable."""
    names = Topology(settings.prefix)
    first = settings.partitions + 1 if settings.partitions > 1 else 1
    state, workers = await _state(settings), 0
    with contextlib.suppress(TopologyError):
        workers = len(await read_workers(settings))
    async with connected(settings, "prune") as connection:
        for partition in range(MOST_PARTITIONS, first - 1, -1):
            queue = names.partition(partition)
            if not await exists(connection, queue):
                continue
            seen = await look(connection, queue)
            why = _keeps(partition, *seen, state, workers)
            # Asked last: a router claims its epoch before it puts anything into a partition.
            if not why and await _has_begun(settings, state):
                why = "a worker has just begun: run this again"
            lost = ""
            if not why:
                messages = await delete(connection, queue)
                # Quorum queues know no `if-empty`: a worker that begins now may have put requests into it.
                if messages or await _has_begun(settings, state):
                    lost = f"a worker began meanwhile, and {messages or 'some'} messages may be lost: "
                    lost += "publish them again"
            yield Pruned(partition, why, lost)


async def _has_begun(settings: Settings, state: PartitionState) -> bool:
    """Whether a router has begun since then."""
    return (await _state(settings)).epoch != state.epoch


def _keeps(partition: int, messages: int, consumers: int, state: PartitionState, workers: int) -> str:
    """Why a partition must stay; `""` where it need not."""
    if messages:
        return f"it still holds {messages} messages: let the workers settle them"
    if not consumers and not workers:
        return ""
    if not state.partitions:
        return "the partition log does not tell whether a worker uses it: restart all workers first"
    if partition <= state.partitions:
        return f"a worker with OTT_PARTITIONS={state.partitions} uses it: restart all workers first"
    if state.barriers.get(partition, Barrier()).epoch < state.epoch:
        return "not known to be empty: publish any request (the router then confirms it) and run this again"
    return ""


async def _state(settings: Settings) -> PartitionState:
    try:
        return await read_partition_state(settings)
    except TopologyError:
        return PartitionState()
