"""Running `ott-worker` as a user does: to its end in this process, or in one of its own where signals, pipes
or a terminal matter."""

import asyncio
import io
import json
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.rig import environment
from worker.cli.app import app
from worker.cli.check import report
from worker.settings import Settings

# A command that runs in this process takes its standard streams and its environment.
_STREAMS = threading.Lock()
PIPES: Mapping[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
LIMIT = 60  # seconds that a command may take


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[dict[str, Any]]:
        """What `--json` printed."""
        return [json.loads(line) for line in self.out.splitlines()]


async def begin(
    settings: Settings | None, *arguments: str | Path, process: Mapping[str, Any] = PIPES, **variables: str
) -> asyncio.subprocess.Process:
    """Start a command in a process of its own; without settings, with the environment of the test alone."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", *map(str, arguments)),
        **{**PIPES, **process},
        env={**(environment(settings) if settings else os.environ), **variables},
    )


async def end(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    """Wait until it has ended."""
    out, err = await asyncio.wait_for(process.communicate(stdin), LIMIT)
    return Ended(process.returncode or 0, (out or b"").decode(), (err or b"").decode())


async def ott_worker(
    settings: Settings | None, *arguments: str | Path, stdin: str | bytes = b"", **variables: str
) -> Ended:
    """Run a command to its end in this process, without a terminal and without signals."""
    words = [*map(str, arguments)]
    given = (environment(settings) if settings else {}) | variables

    def run() -> Ended:
        with _STREAMS:
            ended = CliRunner().invoke(app, words, stdin, given, catch_exceptions=False)
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return await asyncio.wait_for(asyncio.to_thread(run), LIMIT)


async def said(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until the command has said this on standard error, be it without a line's end."""
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readuntil(text.encode()), LIMIT)


OLD_BROKER = re.compile(r"note +broker +RabbitMQ 3\.1[0-2]\.\d+: let only trusted publishers send")


@dataclass(frozen=True)
class Checked:
    """What `check` said."""

    code: int
    out: str

    def line(self, name: str) -> str:
        """The only line about this, beside a warning of the broker's version."""
        (found,) = [line for line in self._lines if line.split()[1] == name]
        return found

    @property
    def _lines(self) -> list[str]:
        return [line for line in self.out.splitlines() if not OLD_BROKER.match(line)]

    @property
    def verdicts(self) -> list[list[str]]:
        """The first two words of each line."""
        return [line.split()[:2] for line in self._lines]

    def failure(self, name: str) -> str:
        """That line, which tells of a failure."""
        assert self.code != 0, self.out
        line = self.line(name)
        assert line.startswith("FAIL"), self.out
        return line


async def checked_with(variables: Mapping[str, str]) -> Checked:
    """`check` in this process, with these variables."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        code = await report(Console(file=out, soft_wrap=True))
    return Checked(code, out.getvalue())
