"""What the README shows: three ways to publish, and the operator's commands in a terminal of 80 columns."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.terminal import in_a_terminal
from tests.faults.node import Node
from tests.integration.secured.ports import free_port
from tests.rig import Rig, environment, messenger, until
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
URL = "amqp://guest:guest@localhost:5672/"


def block(language: str, words: str) -> str:
    """What a reader copies."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = (b for b in re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL) if words in b)
    return found


def run(command: list[str], folder: Path, **variables: str) -> str:
    page = block("sh", "> page.json").replace("> page.json", f"> {folder / 'page.json'}")
    subprocess.run(["sh", "-c", page], cwd=ROOT, check=True)
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_from_python(rig, broker_url, prefix, tmp_path):
    await rig.start()
    program = block("python", "RegistrationClient").replace(URL, broker_url)
    said = await asyncio.to_thread(run, [sys.executable, "-c", program], tmp_path, OTT_PREFIX=prefix)
    assert said == "registered 23493453984234345\n"


async def test_from_node(rig, broker_url, prefix, tmp_path):
    install = ["npm", "install", "--silent", "--prefix", str(tmp_path), "amqplib@2"]
    if shutil.which("npm") is None or await asyncio.to_thread(subprocess.call, install):
        warnings.warn("npm cannot install amqplib: the README's Node example did not run", stacklevel=1)
        return
    program = block("js", "amqplib").replace(URL, broker_url)
    await rig.start()
    said = await asyncio.to_thread(run, ["node", "-e", program], tmp_path, OTT_PREFIX=prefix)
    assert said == "registered\n"


@pytest.fixture(scope="module")
def managed() -> Iterator[tuple[str, int]]:
    """A RabbitMQ with its management API: URL, and port of the API."""
    port = free_port()
    given = (f"management.tcp.port={port}", "management.tcp.ip=127.0.0.1")
    with Node(*given, plugins="rabbitmq_management") as node:
        yield node.url, port


@pytest.fixture
async def beside(managed: tuple[str, int], make_settings: Callable[..., Settings]) -> AsyncIterator[Rig]:
    async with Rig(lambda **more: make_settings(**{"amqp_url": managed[0], **more})) as rig:
        yield rig


async def test_with_curl(beside, managed, prefix, tmp_path):
    await beside.start()
    program = block("sh", "/publish").replace("15672", str(managed[1]))
    said = await asyncio.to_thread(run, ["bash", "-c", program], tmp_path, OTT_PREFIX=prefix)
    assert json.loads(said) == {"routed": True}
    await until(lambda: beside.sandbox.registrations, "the registration")


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
WRAPPED = ("check",)  # its lines are sentences, which the terminal wraps


def pasted() -> str:
    """What a reader pastes."""
    found = re.search(r"```sh\n(ott-worker check\n.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


async def test_each_command_works_and_fits_into_80_columns(rig):
    requester = await rig.start()
    await requester.ask(messenger())
    await rig.turn_down("1732555047025799", "name", message_id="a-request-with-a-long-id")
    await requester.ask(messenger(endpointUrl="", pageName=""))
    variables = environment(rig.settings())
    variables |= {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    for command in pasted().splitlines():
        code, shown = await in_a_terminal(command, variables)
        assert code == 0, (command, shown)
        assert "Traceback" not in shown
        if command.split()[1] not in WRAPPED:
            assert max(map(len, shown.splitlines())) <= 80, (command, shown)
