"""Deleting partitions that are no longer used (contract §10).

A partition is drained for good when the newest router, whose number of partitions leaves it out, has had its
barrier settled there: nothing older is left in it, and nothing new comes. Where no worker runs, it is enough
that it is empty.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from worker.amqp.connection import connect
from worker.amqp.queue import delete, exists, look
from worker.broker.status_stream import read_workers
from worker.broker.topology import MOST_PARTITIONS, Topology
from worker.errors import TopologyError
from worker.partitions.log import Barrier, PartitionState, read_partition_state
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of a partition: deleted, or why not."""

    partition: int
    kept_because: str = ""


async def prune(settings: Settings) -> AsyncIterator[Pruned]:
    """Delete what lies beyond OTT_PARTITIONS, the highest number first; with 1, all of them. Raises
    TopologyError, PublishRefused or BrokerUnreachable."""
    names = Topology(settings.prefix)
    first = settings.partitions + 1 if settings.partitions > 1 else 1
    connection = await connect(settings, "prune")
    try:
        state = await _state(settings)
        workers = len(await _workers(settings))
        for partition in range(MOST_PARTITIONS, first - 1, -1):
            queue = names.partition(partition)
            if not await exists(connection, queue):
                continue
            why = _keeps(partition, *await look(connection, queue), state, workers)
            if not why and (lost := await delete(connection, queue)):
                # Quorum queues know no `if-empty`.
                why = f"{lost} messages came while it was deleted, and are lost: publish them again"
            yield Pruned(partition, why)
    finally:
        await connection.close()


def _keeps(partition: int, messages: int, consumers: int, state: PartitionState, workers: int) -> str:
    """Why a partition must stay; `""` where it need not."""
    if messages:
        return f"it still holds {messages} messages: let the workers settle them"
    if not consumers and not workers:
        return ""
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


async def _workers(settings: Settings) -> list[object]:
    with contextlib.suppress(TopologyError):
        return list(await read_workers(settings))
    return []
