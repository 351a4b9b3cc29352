"""`ott-worker pause` and `ott-worker resume`."""

import asyncio
from typing import Annotated

import typer

from worker.broker.status import publish_order, read_workers, whoami
from worker.cli import output
from worker.contract.status import Order, WorkerStatus
from worker.errors import TopologyError, UsageError
from worker.settings import Settings, load_settings

OBEY_TIMEOUT = 10.0  # seconds that the workers may take to say that they obey
POLL_INTERVAL = 0.3  # seconds


def pause(why: Annotated[str, typer.Option("--why", help="The reason, which `status` shows.")]) -> None:
    """Tell all workers of this prefix to pause: no calls, nothing taken, until somebody resumes them.

    Requests wait in their queue, in order; none is lost. The order stands for workers that start later too.

    Example: ott-worker pause --why "rotating the client secret"
    """
    if not why.strip():
        raise UsageError("--why must say why: others will read it")
    asyncio.run(_order(load_settings(), Order.now("pause", why.strip(), by=whoami())))


def resume(why: Annotated[str, typer.Option("--why", help="An optional remark.")] = "") -> None:
    """Let the workers go on after a pause.

    Example: ott-worker resume
    """
    asyncio.run(_order(load_settings(), Order.now("resume", why.strip(), by=whoami())))


async def _order(settings: Settings, order: Order) -> None:
    await publish_order(settings, order)
    is_pause = order.order == "pause"
    workers = await _until_obeyed(settings, is_pause=is_pause)
    output.line(f"{'Paused' if is_pause else 'Resumed'}: {_obedience(workers, is_pause=is_pause)}")


async def _until_obeyed(settings: Settings, *, is_pause: bool) -> list[WorkerStatus] | None:
    """The workers once all of them tell what was ordered, or when time is up. None if they cannot be read."""
    deadline = asyncio.get_running_loop().time() + OBEY_TIMEOUT
    while True:
        try:
            workers = await read_workers(settings)
        except TopologyError:
            return None
        is_obeyed = all((worker.paused is not None) is is_pause for worker in workers)
        if is_obeyed or asyncio.get_running_loop().time() > deadline:
            return workers
        await asyncio.sleep(POLL_INTERVAL)


def _obedience(workers: list[WorkerStatus] | None, *, is_pause: bool) -> str:
    if workers is None:
        return "the order is given. Whether workers obey cannot be read by this user."
    if not workers:
        return "no worker runs now; the order stands for those that start."
    obeying = sum((worker.paused is not None) is is_pause for worker in workers)
    count = "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
    if obeying < len(workers):
        return f"{obeying} of {count} obey so far: look at ott-worker status."
    return f"{count}." + (" Go on with: ott-worker resume" if is_pause else "")
