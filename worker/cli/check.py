"""`ott-worker check`."""

import asyncio
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.text import Text

from worker.amqp.connection import connect
from worker.broker import topology
from worker.errors import SettingsError, WorkerError
from worker.events import EventListener
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.settings import Settings, load_settings

Step = Callable[[Settings], Awaitable[str]]


def check() -> int:
    """Tell what works and what does not: settings, broker, topology, token. Changes nothing.

    Example: ott-worker check
    """
    return asyncio.run(_check(Console(highlight=False, soft_wrap=True)))


async def _check(console: Console) -> int:
    try:
        settings = load_settings()
        settings.require_marketing_cloud()
    except SettingsError as error:
        _line(console, "settings", str(error), ok=False)
        return error.exit_code
    _line(console, "settings", "complete", ok=True)
    code = 0
    steps: list[tuple[str, Step]] = [("broker", _broker), ("topology", _topology), ("token", _token)]
    for name, step in steps:
        try:
            _line(console, name, await step(settings), ok=True)
        except WorkerError as error:
            _line(console, name, str(error), ok=False)
            code = code or 3
    return code


async def _broker(settings: Settings) -> str:
    connection = await connect(settings, "check")
    await connection.close()
    return f"RabbitMQ {connection.server_version} answers"


async def _topology(settings: Settings) -> str:
    connection = await connect(settings, "check")
    try:
        missing = await topology.missing(connection, settings)
    finally:
        await connection.close()
    if not missing:
        return f"all queues and exchanges of {settings.prefix} are there"
    return f"not there yet, the worker will declare it: {', '.join(missing)}"


async def _token(settings: Settings) -> str:
    async with MarketingCloud(settings, EventListener()) as marketing_cloud:
        try:
            token = await marketing_cloud.accounts.get(None)
        except TokenTrouble as error:
            if "was refused" not in str(error):
                raise
            raise TokenTrouble(f"{error}: check OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET") from None
    return f"received; registrations go to {token.rest_url}"


def _line(console: Console, name: str, text: str, *, ok: bool) -> None:
    mark = ("ok  ", "green") if ok else ("FAIL", "bold red")
    console.print(Text.assemble(mark, f"  {name:<9} {text}"))
