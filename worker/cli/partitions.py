"""`ott-worker partitions`."""

import asyncio

import typer

from worker.cli import output
from worker.errors import WorkerError
from worker.partitions.pruning import prune
from worker.settings import load_settings

app = typer.Typer(
    help="Partitions let several workers be active at once.\n\nExample: ott-worker partitions prune",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _partitions() -> None:
    pass


@app.command("prune")
def _prune() -> int:
    """Delete the partitions beyond OTT_PARTITIONS, once they are drained; with OTT_PARTITIONS=1 all of them.

    Run it when all workers run with the new number. A partition that still holds requests, or is still used,
    is kept; the command says why and exits with 1.

    Example: OTT_PARTITIONS=4 ott-worker partitions prune
    """
    return asyncio.run(_pruned())


async def _pruned() -> int:
    settings, count, code = load_settings(), 0, 0
    async for pruned in prune(settings):
        count += 1
        queue = f"{settings.prefix}.requests.{pruned.partition}"
        if pruned.kept_because:
            output.line(f"kept     {queue}: {pruned.kept_because}")
            code = WorkerError.exit_code
        else:
            output.line(f"deleted  {queue}")
    if not count:
        output.line("There is no unused partition.")
    return code
