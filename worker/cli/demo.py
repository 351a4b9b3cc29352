"""`ott-worker demo`: the whole way on this machine, with a real RabbitMQ and the sandbox (contract §8)."""

import asyncio
import csv
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import uuid4

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from worker.amqp.connection import connect, connected
from worker.broker import topology
from worker.broker.requester import Requester
from worker.cli.terminal import on_end
from worker.console.server import Console as OperatorsPage
from worker.contract.platforms import PLATFORMS
from worker.contract.reply import Reply
from worker.contract.settlement import Resource
from worker.errors import BrokerUnreachable, Interrupted, WorkerError
from worker.events import EventListener
from worker.sandbox import Sandbox
from worker.service import Service, run_until
from worker.settings import Settings, environment, load_settings
from worker.telemetry.status import WorkerPhase

WAIT_TIMEOUT = 60.0  # seconds for each answer
_TO_TRY = Path(__file__).with_name("demo.txt")

# The API document's own examples.
NAME = "SFMC Engineers"
MESSENGER = {
    "applicationId": "1093076390764037",
    "applicationSecret": "03d537gg656gvkbe9b430f002e9c4517",
    "pageId": "1732555047025799",
    "pageName": NAME,
    "pageAccessToken": "someaccesstoken4fasdcruib213123knubkdnfisdubnu12312ub3pijnb",
    "endpointUrl": "https://graph.facebook.com/v2.6/me/messages",
    "callbackVerifyToken": "this_is_the_verify_token",
    "isActive": True,
}
LINE = {
    "channelId": "23493453984234345",
    "channelName": NAME,
    "channelSecret": "03d537gg656gvkbe9b430f002e9c4517",
    "customerConnectSecret": "31234arajcauoherbasuhb213ijqjohbjhb123",
    "endpointUrl": "https://example.com/1732555047025799",
    "isTransactional": True,
    "isTestChannel": False,
    "isActive": True,
}
PAGE = Resource(None, "messenger", str(MESSENGER["pageId"]))
CHANNEL = Resource(None, "line", str(LINE["channelId"]))


class Outcome(NamedTuple):
    """What came of a request; `held` is the name that Marketing Cloud holds afterwards."""

    status: str
    held: str | None = None
    errorcode: int | None = None
    errors: tuple[str, ...] = ()


class Scene(NamedTuple):
    """One request of the demonstration, and what must come of it."""

    request: str
    body: bytes
    expected: Outcome
    about: Resource | None = None


def scenes() -> list[Scene]:
    """The demonstration, in its order."""
    registered, renamed = Outcome("registered", NAME), Outcome("registered", f"{NAME} (new)")
    example = {"ottPlatformAttributes": {k: v for k, v in MESSENGER.items() if k != "endpointUrl"}}
    missing = ("EndpointUrl must be provided", "OttPlatformName must be provided")
    unknown = ("OttPlatformName is invalid",)
    not_json = ("The body is not valid JSON.",)
    new_name = _body("messenger", {**MESSENGER, "pageName": renamed.held})
    return [
        Scene("Messenger page", _body("messenger", MESSENGER), registered, PAGE),
        Scene("LINE channel", _body("line", LINE), registered, CHANNEL),
        Scene("error example", json.dumps(example).encode(), Outcome("rejected", None, 10006, missing)),
        Scene("page, renamed", new_name, renamed, PAGE),
        Scene("unknown platform", _body("telegram", MESSENGER), Outcome("rejected", None, 10006, unknown)),
        Scene("broken JSON", b'{"ottPlatformName": ', Outcome("rejected", None, 10004, not_json)),
    ]


def demo(
    *, serve: Annotated[bool, typer.Option("--serve", help="Stay until Ctrl-C, and say what to try.")] = False
) -> int:
    """Demonstrate the worker on this machine, with a real RabbitMQ and the sandbox.

    The API's examples and some bad requests go through the worker, and what comes back is shown. Exits 0 if
    all is as expected. With --serve, sandbox, worker and console keep running.

    Example: ott-worker demo --serve
    """
    settings = load_settings(
        prefix=f"ott.demo.{uuid4().hex[:4]}",
        declare=True,
        partitions=1,
        journal=True,
        mc_client_id="sandbox",
        mc_client_secret="sandbox",  # noqa: S106 - the sandbox's, made for this
        mc_account_id=None,
        mc_subdomain=None,
        rate_limit=None,
        mc_auth_url="http://127.0.0.1",
        mc_rest_url="http://127.0.0.1",
        console_host="127.0.0.1",
        console_port=0,
        console_password=None,
        console_url=None,
    )
    try:
        return asyncio.run(_demo(Console(highlight=False), settings, serve=serve))
    except BrokerUnreachable:
        script = Path(__file__).parents[2] / "deploy" / "lib" / "with_broker.py"
        if not serve or environment().get("OTT_AMQP_URL") or not script.exists():
            raise
        # In a checkout: again, with a private RabbitMQ that lives as long as the command.
        os.environ.setdefault("OTT_BROKER", "private")
        command = [sys.executable, str(script), sys.executable, "-m", "worker", *sys.argv[1:]]
        os.execv(sys.executable, command)  # noqa: S606 - this very Python


async def _demo(console: Console, settings: Settings, *, serve: bool = False) -> int:
    task = asyncio.current_task()
    assert task is not None
    serving = asyncio.Event()

    def interrupt() -> None:
        if not task.cancelling():  # once: what is deleted then must not be left half done
            task.cancel()

    on_end(interrupt)
    try:
        return await _show(console, settings, serving if serve else None)
    except asyncio.CancelledError:
        if serving.is_set():
            return 0
        raise Interrupted("stopped; what it had declared is deleted") from None


async def _show(console: Console, settings: Settings, serving: asyncio.Event | None) -> int:
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
        worker = await stack.enter_async_context(_worker(settings))
        played = await _play(settings, sandbox, worker)
        console.print(_table(played))
        failed = [scene.request for scene, outcome in played if outcome != scene.expected]
        if failed:
            console.print(f"Not as expected: {', '.join(failed)}", style="bold red")
            return 1
        console.print(f"All {len(played)} requests were answered as expected.")
        if serving is not None:
            page = await stack.enter_async_context(OperatorsPage(settings))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ott-demo-"))
            typer.echo(_things_to_try(settings, sandbox.url, page.entry, _pages(Path(folder))))
            serving.set()
            await worker
    return 0


@asynccontextmanager
async def _worker(settings: Settings) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs while its context lasts, and drains at the end."""
    phase, stop = WorkerPhase(), asyncio.Event()
    service = Service(settings, phase)
    async with phase.publish(service):
        running = asyncio.create_task(run_until(service, stop), name="worker")
        try:
            yield running
        finally:
            stop.set()
            await asyncio.gather(running, return_exceptions=True)


def _pages(folder: Path) -> Path:
    """A file of twenty pages to submit."""
    path = folder / "pages.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["ottPlatformName", *MESSENGER])
        writer.writeheader()
        for number in range(1, 21):
            own = {
                "ottPlatformName": "messenger",
                "pageId": 102030405060 + number,
                "pageName": f"Page {number}",
                "pageAccessToken": f"token-of-page-{number}",
            }
            writer.writerow(MESSENGER | own)
    return path


def _things_to_try(settings: Settings, sandbox: str, page: str, file: Path) -> str:
    exports = [f"export OTT_PREFIX={settings.prefix}", f"export SANDBOX={sandbox}"]
    url = settings.amqp_url.get_secret_value()
    if "guest:guest@" in url:  # else it holds a secret, and the other terminal must have it too
        exports.append(f"export OTT_AMQP_URL={shlex.quote(url)}")
    if shutil.which("ott-worker") is None:
        exports.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    setup = "\n  ".join(exports)
    return _TO_TRY.read_text(encoding="utf-8").format(setup=setup, file=file, page=page)


async def _play(
    settings: Settings, sandbox: Sandbox, worker: "asyncio.Task[None]"
) -> list[tuple[Scene, Outcome]]:
    replies: asyncio.Queue[Reply] = asyncio.Queue()

    def on_reply(_: str, body: bytes) -> None:
        replies.put_nowait(Reply.parse(body))

    async with connected(settings, "demo") as connection:
        await topology.ensure(connection, settings)  # the worker may not have come to it yet
    async with Requester(settings, "demo", on_reply, expires=60, events=EventListener()) as requester:
        played = []
        for number, scene in enumerate(scenes(), 1):
            requester.send(scene.body, request_id=f"demo-{number}")
            reply = await _answer(replies, worker)
            outcome = Outcome(reply.status, _held(sandbox, scene.about), reply.errorcode, reply.messages)
            played.append((scene, outcome))
        return played


async def _answer(replies: asyncio.Queue[Reply], worker: "asyncio.Task[None]") -> Reply:
    reply = asyncio.create_task(replies.get())
    await asyncio.wait({reply, worker}, timeout=WAIT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if worker.done():
        worker.result()
    if not reply.done():
        raise WorkerError(f"No reply within {WAIT_TIMEOUT:g} s: is the broker healthy?")
    return reply.result()


def _held(sandbox: Sandbox, key: Resource | None) -> str | None:
    held = sandbox.registrations.get(key) if key is not None else None
    if held is None:
        return None
    attributes: dict[str, Any] = held.body["ottPlatformAttributes"]
    return str(attributes.get("pageName") or attributes.get("channelName"))


def _table(played: list[tuple[Scene, Outcome]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 1, 0), collapse_padding=True)
    for column in ("Request", "Outcome", "Marketing Cloud holds now"):
        table.add_column(column, overflow="fold")
    for scene, outcome in played:
        text = Text(outcome.status, style="green" if outcome.status == "registered" else "yellow")
        text.append("".join(f"\n  {error}" for error in outcome.errors), style="default")
        noun = PLATFORMS[scene.about.platform].noun if scene.about else ""
        held = f"{noun} {scene.about.id}\n  {outcome.held}" if scene.about else "—"
        table.add_row(scene.request, text, held)
    return table


def _body(platform: str, attributes: dict[str, object]) -> bytes:
    return json.dumps({"ottPlatformName": platform, "ottPlatformAttributes": attributes}).encode()
