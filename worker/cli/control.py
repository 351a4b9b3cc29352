"""`ott-worker pause`, `resume` and `partitions prune`."""

import asyncio
from typing import Annotated

import typer

from worker.broker.status import publish_order, read_workers, whoami
from worker.cli import output
from worker.contract.status import Order, OrderKind
from worker.errors import TopologyError, UsageError, WorkerError
from worker.partitions import pruning
from worker.settings import load_settings

OBEY_TIMEOUT = 10.0  # seconds that the command waits until the workers' status shows the order
POLL_INTERVAL = 0.3  # seconds


def pause(why: Annotated[str, typer.Option("--why", help="The reason, which `status` shows.")]) -> None:
    """Pause all workers of this prefix: they make no calls and consume nothing until `resume`.

    Requests wait in their queue. Workers that start later obey as well.

    Example: ott-worker pause --why "rotating the client secret"
    """
    if not why.strip():
        raise UsageError("--why must give a reason: others will read it")
    output.line(f"Paused: {asyncio.run(_order('pause', why))}")


def resume(why: Annotated[str, typer.Option("--why", help="An optional remark.")] = "") -> None:
    """Resume the workers after a pause.

    Example: ott-worker resume"""
    output.line(f"Resumed: {asyncio.run(_order('resume', why))}")


async def _order(kind: OrderKind, why: str) -> str:
    """Publish the order. Returns how many workers obey it, as text."""
    settings = load_settings()
    await publish_order(settings, Order.now(kind, why.strip(), by=whoami()))
    deadline = asyncio.get_running_loop().time() + OBEY_TIMEOUT
    while True:
        try:
            workers = await read_workers(settings)
        except TopologyError:
            return "the order is published. This user may not read whether the workers obey it."
        obeying = sum((worker.paused is not None) is (kind == "pause") for worker in workers)
        if obeying == len(workers) or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(POLL_INTERVAL)
    if not workers:
        return "no worker is running; the order applies to workers that start later."
    count = "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
    if obeying < len(workers):
        return f"{obeying} of {count} obey so far: see ott-worker status."
    return f"{count}." + (" Resume with: ott-worker resume" if kind == "pause" else "")


def prune() -> int:
    """Delete drained partitions beyond OTT_PARTITIONS; with OTT_PARTITIONS=1 all of them.

    Run it when all workers have the new number. A partition that still has requests or is in use is kept; the
    command says why and exits with 1.

    Example: OTT_PARTITIONS=4 ott-worker partitions prune"""
    return asyncio.run(_pruned())


async def _pruned() -> int:
    settings, count, code = load_settings(), 0, 0
    async for pruned in pruning.prune(settings):
        count += 1
        verb = "kept   " if pruned.kept_because else "deleted"
        why = pruned.kept_because or pruned.lost
        output.line(f"{verb}  {settings.prefix}.requests.{pruned.partition}" + (f": {why}" if why else ""))
        if why:
            code = WorkerError.exit_code
    if not count:
        output.line("There is no unused partition.")
    return code
