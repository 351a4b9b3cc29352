"""`ott-worker submit` as a test uses it: run in a process of its own, its files written and read."""

import asyncio
import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig import MESSENGER, Rig, environment
from worker.settings import Settings

ATTRIBUTES: dict[str, Any] = MESSENGER["ottPlatformAttributes"]
HEADER = ["ottPlatformName", *ATTRIBUTES]


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Command:
    """Runs `ott-worker submit` in a process of its own, with the settings of a rig."""

    def __init__(self, settings: Settings) -> None:
        self.environment = environment(settings)
        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str | Path, **more: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "submit", *map(str, arguments)),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**self.environment, **more},
        )
        self._started.append(process)
        return process

    async def __call__(self, *arguments: str | Path, stdin: bytes = b"", **more: str) -> Ended:
        return await ended(await self.start(*arguments, **more), stdin)

    def kill(self) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()


async def ended(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def told(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until the command says this on standard error."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while text not in (await process.stderr.readline()).decode():
            pass


def write_pages(path: Path, ids: Iterable[object], **more: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for page_id in ids:
            own = {"pageId": page_id, "pageAccessToken": f"token-of-{page_id}"}
            writer.writerow(["messenger", *{**ATTRIBUTES, **own, **more}.values()])
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pages_called(rig: Rig) -> list[str]:
    return [str(call.resource_id) for call in rig.sandbox.history.registration_calls]
