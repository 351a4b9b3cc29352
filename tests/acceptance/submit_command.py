"""`ott-worker submit` as a test uses it: its files written and read."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.commands import Ended, begin, ott_worker
from tests.commands import end as ended
from tests.commands import said as told
from tests.rig import MESSENGER, Rig, environment
from worker.settings import Settings

__all__ = ("Command", "ended", "lines", "pages_called", "told", "write_pages")
ATTRIBUTES: dict[str, Any] = MESSENGER["ottPlatformAttributes"]
HEADER = ["ottPlatformName", *ATTRIBUTES]


class Command:
    """Runs `ott-worker submit` with the settings of a rig."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.environment = environment(settings)
        self._started: list[Any] = []

    async def start(self, *arguments: str | Path, **more: str) -> Any:
        self._started.append(await begin(self._settings, "submit", *arguments, **more))
        return self._started[-1]

    async def __call__(self, *arguments: str | Path, stdin: bytes = b"", **more: str) -> Ended:
        if stdin:  # which is read as a pipe
            return await ended(await self.start(*arguments, **more), stdin)
        return await ott_worker(self._settings, "submit", *arguments, **more)

    def kill(self) -> None:
        for process in self._started:
            if process.returncode is None:
                process.kill()


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
