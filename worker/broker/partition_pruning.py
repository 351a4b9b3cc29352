"""Deleting partitions that are no longer used (contract §10).

A partition is drained for good when the newest router, whose number of partitions leaves it out, has had its
barrier settled there: nothing older is left in it, and nothing new comes. Where no worker runs, it is enough
that it is empty.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiormq.exceptions

from worker.amqp.connection import Connection, close_channel, connect
from worker.broker.partition_log import Barrier, PartitionState, read_partition_state
from worker.broker.status_stream import read_workers
from worker.broker.topology import MOST_PARTITIONS, Topology
from worker.errors import TopologyError
from worker.settings import Settings

ANSWER_TIMEOUT = 15.0  # seconds


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
            found = await _look(connection, names.partition(partition))
            if found is None:
                continue
            why = _keeps(partition, *found, state, workers)
            if not why:
                await _delete(connection, names.partition(partition))
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
        return "it is not known to be drained: send a request, so that a router puts its barrier through"
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


async def _look(connection: Connection, queue: str) -> tuple[int, int] | None:
    """Ready messages and active consumers, None where there is no such queue."""
    channel = await connection.channel()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            declared = await channel.queue_declare(queue, passive=True)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return None
    finally:
        await close_channel(channel, ANSWER_TIMEOUT)
    return declared.message_count or 0, declared.consumer_count or 0


async def _delete(connection: Connection, queue: str) -> None:
    channel = await connection.channel()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await channel.queue_delete(queue)
    except aiormq.exceptions.ChannelAccessRefused:
        raise TopologyError(
            f"This user may not delete {queue}: it needs the right to configure it, as the provisioner has"
        ) from None
    finally:
        await close_channel(channel, ANSWER_TIMEOUT)
