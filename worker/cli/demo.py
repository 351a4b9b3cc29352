"""`ott-worker demo`: everything on this machine, with a real RabbitMQ and the sandbox (contract §8)."""

import asyncio
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.amqp.connection import connect
from worker.broker import topology
from worker.broker.requester import Requester
from worker.cli.terminal import on_end
from worker.console.server import Console as OperatorsPage
from worker.contract.platforms import ATTRIBUTES, PLATFORMS
from worker.contract.reply import Reply, parse_reply
from worker.contract.settlement import Resource
from worker.errors import BrokerUnreachable, Interrupted, WorkerError
from worker.events import EventListener
from worker.sandbox import Sandbox
from worker.service import Service
from worker.settings import Settings, environment, load_settings
from worker.telemetry.status import WorkerPhase

HERE = Path(__file__).parent
WAIT_TIMEOUT = 60.0  # seconds for each answer
# The API document's examples and some bad requests: the body, the expected reply, and the name that Marketing
# Cloud must hold afterwards.
SCENES: list[dict[str, Any]] = json.loads((HERE / "demo.json").read_bytes())
# These settings are unset, whatever the environment contains.
NOT_SET = dict.fromkeys(("mc_account_id", "mc_subdomain", "rate_limit", "console_password", "console_url"))


def demo(
    *, serve: Annotated[bool, typer.Option("--serve", help="Run until Ctrl-C, with things to try.")] = False
) -> int:
    """Demonstrate the worker on this machine, with a real RabbitMQ and the sandbox.

    Sends the API's examples and some bad requests through the worker, and shows the replies. Exits with 0 if
    all are as expected. With --serve, sandbox, worker and console keep running.

    Example: ott-worker demo --serve"""
    settings = load_settings(
        prefix=f"ott.demo.{uuid4().hex[:4]}",
        declare=True,
        partitions=1,
        journal=True,
        mc_client_id="sandbox",
        mc_client_secret="sandbox",  # noqa: S106 - the sandbox's, made for this
        mc_auth_url="http://127.0.0.1",
        mc_rest_url="http://127.0.0.1",
        console_host="127.0.0.1",
        console_port=0,
        **NOT_SET,
    )
    try:
        return asyncio.run(_demo(Console(highlight=False), settings, serve=serve))
    except BrokerUnreachable:
        script = Path(__file__).parents[2] / "deploy" / "lib" / "with_broker.py"
        if not serve or environment().get("OTT_AMQP_URL") or not script.exists():
            raise
        # In a checkout, run again with a private RabbitMQ that ends with the command.
        os.environ.setdefault("OTT_BROKER", "private")
        command = [sys.executable, str(script), sys.executable, "-m", "worker", *sys.argv[1:]]
        os.execv(sys.executable, command)  # noqa: S606 - this very Python


async def _demo(console: Console, settings: Settings, *, serve: bool) -> int:
    task, is_serving = asyncio.current_task(), False
    assert task is not None
    # Only the first signal counts: a second one must not interrupt the deletion.
    on_end(lambda: task.cancelling() or task.cancel())
    try:
        async with AsyncExitStack() as stack:
            sandbox = await stack.enter_async_context(Sandbox())
            settings = settings.model_copy(update={"mc_auth_url": sandbox.url, "mc_rest_url": sandbox.url})
            connection = await connect(settings, "demo")
            stack.push_async_callback(connection.close)
            stack.push_async_callback(topology.delete, connection, settings)
            console.print(
                f"RabbitMQ {connection.server_version} → ott-worker → "
                f"Marketing Cloud's sandbox on {sandbox.url.removeprefix('http://')}\n"
            )
            await topology.ensure(connection, settings)
            worker = await stack.enter_async_context(_worker(settings))
            unexpected = await _play(console, settings, sandbox, worker)
            if unexpected:
                console.print(f"Not as expected: {', '.join(unexpected)}", style="bold red")
                return 1
            console.print(f"All {len(SCENES)} requests were answered as expected.")
            if serve:
                page = await stack.enter_async_context(OperatorsPage(settings))
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ott-demo-"))
                pages = shutil.copy(HERE / "demo.csv", folder)
                typer.echo(_things_to_try(settings, sandbox.url, page.entry, pages))
                is_serving = True
                await worker
    except asyncio.CancelledError:
        if not is_serving:
            raise Interrupted("stopped; its queues and exchanges are deleted") from None
    return 0


@asynccontextmanager
async def _worker(settings: Settings) -> AsyncIterator["asyncio.Task[None]"]:
    """A worker that runs within the context, and drains at the end."""
    phase = WorkerPhase()
    service = Service(settings, phase)
    async with phase.publish(service):
        running = asyncio.create_task(service.run(), name="worker")
        try:
            yield running
        finally:
            service.stop()
            await asyncio.gather(running, return_exceptions=True)


async def _play(
    console: Console, settings: Settings, sandbox: Sandbox, worker: "asyncio.Task[None]"
) -> list[str]:
    """Send the requests, and show the outcomes in a table. Returns those with an unexpected outcome."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0), collapse_padding=True)
    for column in ("Request", "Outcome", "Marketing Cloud holds now"):
        table.add_column(column, overflow="fold")
    replies: asyncio.Queue[Reply] = asyncio.Queue()

    def on_reply(_: str, body: bytes) -> None:
        replies.put_nowait(parse_reply(body))

    unexpected = []
    async with Requester(settings, "demo", on_reply, expires=60, events=EventListener()) as requester:
        for number, scene in enumerate(SCENES, 1):
            body = scene["body"]
            text = body if isinstance(body, str) else json.dumps(body)
            requester.send(text.encode(), request_id=f"demo-{number}")
            reply = await _answer(replies, worker)
            status = Text(reply.status, style="green" if reply.status == "registered" else "yellow")
            status.append("".join(f"\n  {message}" for message in reply.messages), style="default")
            noun, held = _held(sandbox, reply)
            table.add_row(scene["request"], status, f"{noun} {reply.resource_id}\n  {held}" if noun else "—")
            if ([reply.status, *reply.messages], held) != (scene["outcome"], scene["held"]):
                unexpected.append(scene["request"])
    console.print(table)
    return unexpected


async def _answer(replies: asyncio.Queue[Reply], worker: "asyncio.Task[None]") -> Reply:
    reply = asyncio.create_task(replies.get())
    await asyncio.wait({reply, worker}, timeout=WAIT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if worker.done():
        worker.result()
    if not reply.done():
        raise WorkerError(f"No reply within {WAIT_TIMEOUT:g} s: is the broker healthy?")
    return reply.result()


def _held(sandbox: Sandbox, reply: Reply) -> tuple[str, str | None]:
    """The noun of the registered resource (page or channel), and the name that Marketing Cloud holds."""
    resource = Resource.named(None, reply.platform, reply.resource_id)
    if resource is None or resource not in sandbox.registrations:
        return "", None
    platform = PLATFORMS[resource.platform]
    return platform.noun, sandbox.registrations[resource].body[ATTRIBUTES][platform.name_field]


def _things_to_try(settings: Settings, sandbox: str, page: str, file: str) -> str:
    exports = [f"export OTT_PREFIX={settings.prefix}", f"export SANDBOX={sandbox}"]
    url = settings.amqp_url.get_secret_value()
    if "guest:guest@" in url:  # any other URL may hold a secret
        exports.append(f"export OTT_AMQP_URL={shlex.quote(url)}")
    if shutil.which("ott-worker") is None:
        exports.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    setup = "\n  ".join(exports)
    text = (HERE / "demo.txt").read_text(encoding="utf-8")
    return text.format(setup=setup, file=file, page=page)
