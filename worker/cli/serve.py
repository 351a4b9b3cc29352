"""`ott-worker sandbox` and `ott-worker console`."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any

import typer
import uvloop

from worker.cli.terminal import on_end
from worker.errors import UsageError
from worker.sandbox import Sandbox
from worker.settings import load_settings

DEFAULT_CLIENT = "sandbox"


def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 chooses a free one.", min=0, max=65535)] = 8081,
    client_id: Annotated[
        str, typer.Option(help="The only client that gets tokens.", envvar="OTT_MC_CLIENT_ID")
    ] = DEFAULT_CLIENT,
    client_secret: Annotated[
        str,
        typer.Option(
            help="Its secret. Prefer the variable: a process list shows options.",
            envvar="OTT_MC_CLIENT_SECRET",
            show_envvar=True,
        ),
    ] = DEFAULT_CLIENT,
    token_lifetime: Annotated[float, typer.Option(help="Seconds that a token is valid.", min=1)] = 1080,
) -> None:
    """Run a local Marketing Cloud: tokens, registrations, and faults on request.

    Example: ott-worker sandbox --port 8081, then for three failures:
    curl -H 'Content-Type: application/json' -d '[{"kind": "status", "status": 503, "count": 3}]'
    localhost:8081/sandbox/faults"""
    if not client_id or not client_secret:
        raise UsageError("The client id and secret must not be empty.")
    server = Sandbox(
        client_id=client_id,
        client_secret=client_secret,
        host=host,
        port=port,
        token_lifetime=token_lifetime,
    )
    shown_secret = client_secret if client_secret == DEFAULT_CLIENT else "…"
    credentials = f"OTT_MC_CLIENT_ID={client_id} OTT_MC_CLIENT_SECRET={shown_secret}"
    uvloop.run(
        _serve(
            server,
            lambda: (
                f"Sandbox on {server.url} · "
                f"export OTT_MC_AUTH_URL={server.url} OTT_MC_REST_URL={server.url} {credentials}"
            ),
        )
    )


def console() -> None:
    """Serve a web page for operators: workers, dead letters, the journal; replay, correct, discard, pause.

    It listens on OTT_CONSOLE_HOST and OTT_CONSOLE_PORT. Beyond loopback it requires OTT_CONSOLE_PASSWORD.

    Example: OTT_CONSOLE_PORT=0 ott-worker console"""
    from worker.console.server import Console  # noqa: PLC0415 # the sandbox does not need it

    server = Console(load_settings())
    uvloop.run(_serve(server, lambda: server.entry))


async def _serve(server: AbstractAsyncContextManager[Any], introduction: Callable[[], str]) -> None:
    """Serve until a signal."""
    stop = asyncio.Event()
    on_end(stop.set)
    async with server:
        typer.echo(introduction())
        await stop.wait()
