"""`ott-worker partitions`."""

import asyncio

from worker.cli import output
from worker.errors import WorkerError
from worker.partitions import pruning
from worker.settings import load_settings


def prune() -> int:
    """Delete the partitions beyond OTT_PARTITIONS, once they are drained; with OTT_PARTITIONS=1 all of them.

    Run it when all workers run with the new number. A partition that still holds requests, or is still used,
    is kept; the command says why and exits with 1.

    Example: OTT_PARTITIONS=4 ott-worker partitions prune
    """
    return asyncio.run(_pruned())


async def _pruned() -> int:
    settings, count, code = load_settings(), 0, 0
    async for pruned in pruning.prune(settings):
        count += 1
        queue = f"{settings.prefix}.requests.{pruned.partition}"
        why = pruned.kept_because or pruned.lost
        output.line(
            f"{'kept   ' if pruned.kept_because else 'deleted'}  {queue}" + (f": {why}" if why else "")
        )
        if why:
            code = WorkerError.exit_code
    if not count:
        output.line("There is no unused partition.")
    return code
