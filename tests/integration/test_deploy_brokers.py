"""How `deploy/` finds a RabbitMQ, and that nothing of a private one is left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.secured.ports import listens
from tests.rig import WAIT_TIMEOUT

ONE_BROKER = "It looks for any RabbitMQ."

DEPLOY = Path(__file__).parents[2] / "deploy"
WITH_BROKER = [sys.executable, DEPLOY / "lib" / "with_broker.py", sys.executable, "-c"]
TELL_AND_WAIT = "import os, time; print(os.environ['OTT_AMQP_URL'], flush=True); time.sleep(300)"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private nodes put their data, with a space in its name; empty again afterwards."""
    folder = tmp_path / "data of brokers"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=120
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[Path]:
    """Living processes that were started in, or for, that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={folder}".encode() in (process / "environ").read_bytes():
                found.append(process)
    return found


def test_a_node_that_cannot_start_says_why_in_one_line_and_leaves_nothing(tmp_path):
    folder = tmp_path / "a node"
    failed = run(DEPLOY / "private-broker", "start", folder, "--set", "no_such_setting=1")
    assert failed.returncode == 3
    assert len(failed.stderr.splitlines()) == 1
    assert "no_such_setting" in failed.stderr
    until(lambda: not processes_of(folder), "the end of the node's helpers")


def test_a_private_node_listens_on_loopback_and_ends_with_the_program_that_needed_it(temporary):
    # A shell lets what it starts in the background ignore SIGINT, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*WITH_BROKER, TELL_AND_WAIT],
        env=os.environ | {"OTT_BROKER": "private"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # no terminal: as under a pipeline
    )
    assert process.stdout
    assert process.stdout.readline().startswith("amqp://")
    (folder,) = temporary.iterdir()
    ports = json.loads((folder / "ports.json").read_text()).values()
    for port in ports:
        assert listens(port)
        with socket.socket() as beside:
            beside.bind(("127.0.0.2", port))  # fails where something listens on every address
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_TIMEOUT) == 128 + signal.SIGTERM
    assert not any(map(listens, ports))
    assert list(temporary.iterdir()) == []


def test_a_signal_while_the_private_node_starts_leaves_nothing(temporary):
    process = subprocess.Popen([*WITH_BROKER, TELL_AND_WAIT], env=os.environ | {"OTT_BROKER": "private"})
    until(lambda: any(temporary.glob("*/node.pid")), "the start of the node")
    (folder,) = temporary.iterdir()
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_TIMEOUT) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []
    until(lambda: not processes_of(folder), "the end of the node's helpers")


def test_a_named_broker_that_does_not_answer_is_an_error_in_one_line_without_its_password():
    done = run(*WITH_BROKER, "", OTT_AMQP_URL="amqp://someone:canary-password@127.0.0.1:1/")
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:1" in done.stderr
    assert "canary-password" not in done.stderr
