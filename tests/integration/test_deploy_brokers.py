"""How `deploy/` finds a RabbitMQ, and that nothing of a private one is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest

from tests.integration.secured.ports import listens
from tests.rig import WAIT_TIMEOUT

ONE_BROKER = "It looks for any RabbitMQ."

DEPLOY = Path(__file__).parents[2] / "deploy"
TELL = [sys.executable, "-c", "import os; print(os.environ.get('OTT_AMQP_URL'), flush=True)"]
TELL_AND_WAIT = [
    sys.executable,
    "-c",
    "import os, time; print(os.environ['OTT_AMQP_URL'], flush=True); time.sleep(300)",
]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private nodes put their data, with a space in its name; empty again afterwards."""
    folder = tmp_path / "data of brokers"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def with_broker(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DEPLOY / "lib" / "with_broker.py", *command],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def private_broker(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEPLOY / "private-broker", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that were started in, or for, that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={folder}".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a private node, which is ended afterwards."""
    folder = tmp_path / "a node"
    yield folder
    private_broker("kill", folder)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a private node that runs, with a setting of its own."""
    folder = tmp_path_factory.mktemp("a running node")
    private_broker("start", folder, "--set", "consumer_timeout=60000")
    yield folder
    private_broker("kill", folder)


def ports_of(folder: Path) -> list[int]:
    return list(json.loads((folder / "ports.json").read_text()).values())


def test_a_private_node_listens_on_loopback_only(running: Path) -> None:
    for port in ports_of(running):
        assert listens(port)
        with socket.socket() as beside:
            beside.bind(("127.0.0.2", port))  # fails where something listens on every address


def test_a_private_node_takes_settings_and_orders_of_rabbitmqctl(running: Path) -> None:
    asked = private_broker("ctl", running, "-q", "eval", "application:get_env(rabbit, consumer_timeout).")

    assert asked.stdout.strip() == "{ok,60000}"


async def test_a_killed_node_comes_back_with_what_it_had_confirmed_and_a_stopped_one_leaves_nothing(
    folder: Path,
) -> None:
    url = private_broker("start", folder).stdout.strip()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(aio_pika.Message(b"kept", delivery_mode=2), "kept")
    private_broker("flush", folder)

    private_broker("kill", folder)
    assert not any(listens(port) for port in ports_of(folder))
    assert private_broker("start", folder).stdout.strip() == url

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("kept")
        message = await queue.get(no_ack=True, timeout=WAIT_TIMEOUT)
        assert message.body == b"kept"

    assert private_broker("stop", folder).returncode == 0
    assert not any(listens(port) for port in ports_of(folder))
    until(lambda: not processes_of(folder), "the end of the node's helpers")


def test_a_node_that_cannot_start_says_why_in_one_line_and_leaves_nothing(folder: Path) -> None:
    failed = private_broker("start", folder, "--set", "no_such_setting=1")

    assert failed.returncode == 3
    assert len(failed.stderr.splitlines()) == 1
    assert "no_such_setting" in failed.stderr
    until(lambda: not processes_of(folder), "the end of the node's helpers")


def test_a_private_node_lives_as_long_as_the_program_that_needed_it(temporary: Path) -> None:
    done = with_broker(TELL, OTT_BROKER="private")

    assert done.returncode == 0, done.stderr
    assert not listens(urlsplit(done.stdout.strip()).port or 0)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_and_then_the_private_node(temporary: Path, number: signal.Signals) -> None:
    process = start(TELL_AND_WAIT, "private")
    assert process.stdout
    url = process.stdout.readline().strip()

    process.send_signal(number)

    assert process.wait(WAIT_TIMEOUT) == 128 + number
    assert not listens(urlsplit(url).port or 0)
    assert list(temporary.iterdir()) == []


def test_a_signal_while_the_private_node_starts_leaves_nothing(temporary: Path) -> None:
    process = start(TELL_AND_WAIT, "private")
    until(lambda: any(temporary.glob("*/node.pid")), "the start of the node")
    (folder,) = temporary.iterdir()

    process.send_signal(signal.SIGTERM)

    assert process.wait(WAIT_TIMEOUT) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    until(lambda: not processes_of(folder), "the end of the node's helpers")


def start(command: list[str], choice: str) -> subprocess.Popen[str]:
    # A shell lets what it starts in the background ignore SIGINT, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, DEPLOY / "lib" / "with_broker.py", *command],
        env=os.environ | {"OTT_BROKER": choice},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # no terminal: as under a pipeline
    )


def test_a_named_broker_that_does_not_answer_is_an_error_in_one_line_without_its_password() -> None:
    done = with_broker(TELL, OTT_AMQP_URL="amqp://someone:canary-password@127.0.0.1:1/")

    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:1" in done.stderr
    assert "canary-password" not in done.stderr
