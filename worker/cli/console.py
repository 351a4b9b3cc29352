"""`ott-worker console`."""

import asyncio

import typer
import uvloop

from worker.cli.terminal import on_end
from worker.console.server import Console
from worker.settings import Settings, load_settings


def console() -> None:
    """Serve a web page for operators: workers, dead letters, the journal; replay, correct, discard, pause.

    It listens on OTT_CONSOLE_HOST and OTT_CONSOLE_PORT; beyond loopback it wants OTT_CONSOLE_PASSWORD.

    Example: OTT_CONSOLE_PORT=0 ott-worker console
    """
    uvloop.run(_serve(load_settings()))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    on_end(stop.set)
    async with Console(settings) as server:
        typer.echo(server.entry)
        await stop.wait()
