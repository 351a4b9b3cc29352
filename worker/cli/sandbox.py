"""`ott-worker sandbox`."""

import asyncio
from typing import Annotated

import typer
import uvloop

from worker.cli.terminal import on_end
from worker.errors import UsageError
from worker.sandbox import Sandbox

DEFAULT_PORT = 8081
DEFAULT_CLIENT = "sandbox"


def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = DEFAULT_PORT,
    client_id: Annotated[
        str, typer.Option(help="The only client that gets tokens.", envvar="OTT_MC_CLIENT_ID")
    ] = DEFAULT_CLIENT,
    client_secret: Annotated[
        str,
        typer.Option(
            help="Its secret. Better set as the variable: a process list shows options.",
            envvar="OTT_MC_CLIENT_SECRET",
            show_envvar=True,
        ),
    ] = DEFAULT_CLIENT,
    account: Annotated[
        list[str] | None, typer.Option(help="A business unit that may be named; repeatable. Default: any.")
    ] = None,
    token_lifetime: Annotated[float, typer.Option(help="Seconds that a token lasts.", min=1)] = 1080,
    seed: Annotated[int, typer.Option(help="Makes random faults repeatable.")] = 0,
    history_limit: Annotated[int, typer.Option(help="Calls that are remembered.", min=1)] = 100_000,
) -> None:
    """Run a local Marketing Cloud: tokens, registrations, and faults on request.

    Example: ott-worker sandbox --port 8081, and then for three failures:
    curl -H 'Content-Type: application/json' -d '[{"kind": "status", "status": 503, "count": 3}]'
    localhost:8081/sandbox/faults
    """
    if not client_id or not client_secret:
        raise UsageError("The client id and secret must not be empty.")
    server = Sandbox(
        client_id=client_id,
        client_secret=client_secret,
        host=host,
        port=port,
        account_ids=frozenset(account) if account else None,
        token_lifetime=token_lifetime,
        seed=seed,
        history_limit=history_limit,
    )
    shown_secret = client_secret if client_secret == DEFAULT_CLIENT else "…"
    uvloop.run(_serve(server, f"OTT_MC_CLIENT_ID={client_id} OTT_MC_CLIENT_SECRET={shown_secret}"))


async def _serve(server: Sandbox, credentials: str) -> None:
    stop = asyncio.Event()
    on_end(stop.set)
    async with server:
        typer.echo(
            f"Sandbox on {server.url} · export OTT_MC_AUTH_URL={server.url} OTT_MC_REST_URL={server.url} "
            f"{credentials}"
        )
        await stop.wait()
