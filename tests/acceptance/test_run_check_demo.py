"""`run`, `check` and `demo` as a user meets them (contract §8)."""

import asyncio
import json
import signal
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.commands import Ended, begin, ott_worker
from tests.rig import environment, messenger, until
from worker.__main__ import main


async def test_demo_shows_that_all_came_out_as_expected(clean_broker):
    done = await ott_worker(None, "demo", OTT_AMQP_URL=clean_broker)
    assert (done.code, done.err) == (0, "")
    assert "All 6 requests were answered as expected." in done.out
    assert done.out.splitlines()[0].partition("sandbox on 127.0.0.1:")[2].isdigit()  # in one line


@pytest.mark.parametrize("words", [[], ["dead-letters"]])
async def test_without_a_command_there_is_help_and_nothing_else(words):
    done = await ott_worker(None, *words)
    assert (done.code, done.err) == (2, "")
    assert "Example: ott-worker" in done.out


async def test_version_is_one_line():
    done = await ott_worker(None, "--version")
    assert done == Ended(0, f"ott-worker {metadata.version('ott-registration-worker')}\n", "")


@pytest.mark.parametrize("words", [["schema"], ["--help"], ["check"]])
async def test_a_full_standard_output_is_one_line(words):
    with Path("/dev/full").open("w") as full:
        process = await begin(None, *words, process={"stdout": full})
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert err == b"ott-worker: cannot write to standard output: No space left on device\n"


async def test_demo_without_a_broker_says_so_in_one_line_and_exits_3():
    done = await ott_worker(None, "demo", OTT_AMQP_URL="amqp://guest:s3cret@127.0.0.1:1/")
    assert done.code == 3
    assert done.err == "ott-worker: RabbitMQ at 127.0.0.1:1 cannot be reached: connection refused\n"


def in_this_process(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """Run a command that ends at once; its exit code."""
    monkeypatch.setattr(sys, "argv", ["ott-worker", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize("words", ["run", "demo", "submit -", "dead-letters list", "journal"])
def test_a_wrong_setting_ends_every_command_with_2_and_one_line(words, monkeypatch, capsys):
    monkeypatch.setenv("OTT_PREFETCH", "many")
    assert in_this_process(monkeypatch, *words.split()) == 2
    assert capsys.readouterr().err == "ott-worker: OTT_PREFETCH must be a whole number\n"


COMMANDS = ["", "run", "demo", "check", "status", "pause", "resume", "submit", "journal", "sandbox", "schema"]
COMMANDS += ["dead-letters", "console", "partitions", "partitions prune"]
COMMANDS += [f"dead-letters {command}" for command in ("list", "show", "replay", "export", "discard")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, monkeypatch, capsys):
    assert in_this_process(monkeypatch, *command.split(), "--help") == 0
    assert "Example:" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_serves_requests_and_probes_and_drains_on_a_signal(rig, make_settings, number):
    given = {**environment(rig.settings()), "OTT_ADMIN_PORT": "0", "OTT_PREFECTH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "worker", "run"], env=given, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = []
        while not lines or not lines[-1]["event"].startswith("subscribed"):
            lines.append(json.loads(await asyncio.to_thread(process.stderr.readline)))
        assert lines[0]["event"] == "ott-worker starts"
        assert lines[0]["version"] == metadata.version("ott-registration-worker")
        assert (lines[0]["prefix"], lines[0]["url"]) == (rig.settings().prefix, rig.sandbox.url)
        assert (
            lines[0]["broker"]
            == urlsplit(rig.settings().amqp_url.get_secret_value()).netloc.rpartition("@")[2]
        )
        assert (lines[1]["level"], lines[1]["variable"]) == ("warning", "OTT_PREFECTH")
        assert "the nearest is OTT_PREFETCH" in lines[1]["why"]
        admin = next(line["url"] for line in lines if line["event"] == "admin server listening")
        requester = await rig.requester_for(rig.settings())
        assert (await requester.ask(messenger()))["status"] == "registered"
        assert await until(lambda: _get(f"{admin}/readyz")[0] == 200)
        assert _get(f"{admin}/livez")[0] == 200
        assert b"ott_" in _get(f"{admin}/metrics")[1]
        process.send_signal(number)
        _, rest = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0
        ended = [json.loads(line) for line in rest.splitlines()]
        assert ended[-1]["event"] == "stopped"
        (summary,) = [line for line in ended if line["event"] == "requests settled"]
        assert (summary["registered"], summary["failed"]) == (1, 0)
    finally:
        process.kill()
        process.wait()


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
