"""A test run that is interrupted, even by SIGKILL, leaves no process, broker, namespace or folder behind.

Each process of pytest has a watchdog, which waits until the pipe from that process ends. Then it ends
what bears the mark of the run in its environment, and runs the commands that are still noted.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

MARK = "RUN_OF_TESTS"  # environment variable
GRACE = 5.0  # seconds that a process has to end in order
_watchdog: "subprocess.Popen[bytes] | None" = None


def start() -> None:
    """Begin to watch this process. All that it starts from now on bears the mark."""
    global _watchdog  # noqa: PLW0603
    mark = uuid4().hex
    _watchdog = subprocess.Popen(
        [sys.executable, __file__, mark],
        stdin=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != MARK},
        start_new_session=True,
    )
    os.environ[MARK] = mark


@contextlib.contextmanager
def afterwards(*commands: list[str]) -> Iterator[None]:
    """Have these commands run if this process ends within the block."""
    name = uuid4().hex
    _note({"name": name, "commands": commands})
    try:
        yield
    finally:
        _note({"name": name, "commands": []})


def _note(what: dict[str, object]) -> None:
    if _watchdog is not None and _watchdog.stdin is not None:
        _watchdog.stdin.write(json.dumps(what).encode() + b"\n")
        _watchdog.stdin.flush()


def _watch(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    noted = {}
    for line in sys.stdin:
        what = json.loads(line)
        noted[what["name"]] = what["commands"]
    _end_all(f"{MARK}={mark}".encode())
    for commands in noted.values():
        for command in commands:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, timeout=60, check=False)


def _end_all(mark: bytes) -> None:
    number, deadline = signal.SIGTERM, time.monotonic() + GRACE
    while marked := _marked(mark):
        for pid in marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # one that is stopped hears nothing else
                os.kill(pid, number)
        while _marked(mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        number = signal.SIGKILL


def _marked(mark: bytes) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    _watch(sys.argv[1])
