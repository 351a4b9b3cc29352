"""The README's "Break it", run as it is printed; only ports, broker and prefix are the test's own."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def block() -> str:
    """What a reader pastes."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"## Break it\n.*?```sh\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    return found[1]


async def test_break_it_pauses_resumes_registers_all_and_leaves_nothing_running(
    clean_broker: str, prefix: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A node that somebody runs in that folder is not the test's to stop.
    pasted = block().replace("8081", str(port)).replace("build/broker", f"'{tmp_path}/broker'")
    given = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "HOME": os.environ["HOME"],
        "OTT_AMQP_URL": clean_broker,
        "OTT_PREFIX": prefix,
        "OTT_ADMIN_PORT": "0",
        "COLUMNS": "80",
    }
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", pasted],  # it ends only when all that it started has closed its output
        cwd=ROOT,
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert '"event": "paused: ' in said
    assert '"event": "resumed: ' in said
    assert "OUTAGE: Marketing Cloud takes no calls" in done.stdout
    assert re.search(r"gate closed: Marketing Cloud answered 503", done.stdout)
    assert re.search(r"^\d.* registered .* messenger ", done.stdout, re.MULTILINE), "the journal"
    assert "Traceback" not in said


def test_break_it_starts_a_broker_only_where_none_is_named_and_stops_it() -> None:
    assert "${OTT_AMQP_URL:-$(deploy/private-broker start build/broker)}" in block()
    assert block().rstrip().endswith("deploy/private-broker stop build/broker\n)")
