"""A run of tests that is interrupted leaves no broker, process, namespace or folder behind."""

import asyncio
import importlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.secured.ports import listens
from tests.rig import until

RUN = Path(__file__).parents[1] / "support" / "interrupted.py"


async def interrupted(folder: Path, number: signal.Signals, *options: str) -> None:
    folder.mkdir()
    told = folder / "told"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", f"--basetemp={folder / 'base'}", *options, RUN],
        cwd=RUN.parents[2],
        env=os.environ | {"TOLD": str(told)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C that reaches the group is no test of it
    )
    try:
        await until(lambda: told.exists() and "\nall\n" in told.read_text(), "the start of everything", 90)
        url, of_node, *pids_and_namespaces = told.read_text().splitlines()[:-1]
        process.send_signal(number)
        await asyncio.to_thread(process.wait, 60)
        places = [Path("/proc" if name.isdigit() else "/run/netns", name) for name in pids_and_namespaces]
        places.append(Path(of_node))
        port = urlsplit(url).port or 0
        await until(
            lambda: not listens(port) and not any(p.exists() for p in places), "the end of all of it", 60
        )
    finally:
        process.kill()
        process.wait()


async def test_a_run_that_is_told_to_end_or_killed_leaves_nothing(tmp_path: Path) -> None:
    await asyncio.gather(
        interrupted(tmp_path / "term", signal.SIGTERM, "-n", "1"),
        interrupted(tmp_path / "kill", signal.SIGKILL, "-p", "no:xdist"),
    )


def test_a_program_that_does_not_end_when_it_is_told_to_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RUN.parents[2] / "deploy" / "lib")
    foreground = importlib.import_module("foreground")
    monkeypatch.setattr(foreground, "GRACE", 0.5)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('', flush=True); time.sleep(60)"
    telling = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    telling.start()
    assert foreground.run([sys.executable, "-c", stubborn], os.environ) == 128 + signal.SIGKILL
    telling.join()
