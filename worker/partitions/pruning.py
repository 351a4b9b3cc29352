"""Deleting partitions that are no longer used (contract §10).

A partition is drained for good when the newest router does not use it and its barrier is settled there:
nothing older is left, and nothing new follows. If no worker is running, it is enough that the partition is
empty."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from worker.amqp.connection import Connection, answered, connected
from worker.amqp.consumer import Subscription
from worker.amqp.queue import delete, exists, look
from worker.broker.status import read_workers
from worker.broker.topology import MOST_PARTITIONS, Topology
from worker.errors import TopologyError
from worker.partitions.log import Barrier, PartitionState, read_partition_state
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result for a partition: deleted, or why not; and what was lost with it."""

    partition: int
    kept_because: str = ""
    lost: str = ""


async def prune(settings: Settings) -> AsyncIterator[Pruned]:
    """Delete the partitions beyond OTT_PARTITIONS, highest number first; with 1, all of them. Raises
    TopologyError or BrokerUnreachable."""
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
            if not why and not seen.consumers and not await _is_empty(connection, queue):
                why = "it still holds messages: let the workers settle them"
            # Checked last: a router claims its epoch before it publishes to a partition.
            if not why and await _has_begun(settings, state):
                why = "a worker has just begun: run this again"
            lost = ""
            if not why:
                messages = await delete(connection, queue)
                # Quorum queues have no `if-empty`: a router that began now may have published to it.
                if messages or await _has_begun(settings, state):
                    lost = f"a worker began meanwhile, and {messages or 'some'} messages may be lost: "
                    lost += "publish them again"
            yield Pruned(partition, why, lost)


async def _is_empty(connection: Connection, queue: str) -> bool:
    """Whether a queue holds no messages. RabbitMQ reports none if the queue's leader does not answer in time;
    a consumer waits for the leader."""
    subscription = Subscription(connection, queue, prefetch=1)
    try:
        async with answered(connection, f"{queue} could not be looked at"):
            await subscription.open(lambda _: None)
            await subscription.renew_lease()
        return not subscription.unsettled
    finally:
        await subscription.close()


async def _has_begun(settings: Settings, state: PartitionState) -> bool:
    """Whether a router has begun since `state` was read."""
    return (await _state(settings)).epoch != state.epoch


def _keeps(partition: int, messages: int, consumers: int, state: PartitionState, workers: int) -> str:
    """Why a partition must be kept; `""` if it can be deleted."""
    if messages:
        return f"it still holds {messages} messages: let the workers settle them"
    if not consumers and not workers:
        return ""
    if not state.partitions:
        return "the partition log does not show whether a worker uses it: restart all workers first"
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
