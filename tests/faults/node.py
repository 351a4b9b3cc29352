"""A RabbitMQ node of the tests' own, which they may kill (deploy/private-broker)."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests import watchdog

# The versions of RabbitMQ of which tests make nodes of their own: file trees, separated by commas. An empty
# one stands for the installed version.
ROOTS = os.environ.get("OTT_TEST_RABBITMQ_ROOTS", os.environ.get("OTT_TEST_RABBITMQ_ROOT", "")).split(",")
PRIVATE_BROKER = Path(__file__).parents[2] / "deploy" / "private-broker"


class Node:
    """A node in a folder of its own, with these lines of rabbitmq.conf more. As a context manager it is `up`
    as long as the block lasts. Blocking calls run in a thread."""

    def __init__(self, *settings: str, plugins: str = "", root: str = "") -> None:
        """`root` is a file tree with another version of RabbitMQ in it; else the installed one is taken."""
        self._environment = {**os.environ, "OTT_TEST_RABBITMQ_ROOT": root} if root else None
        self.folder = Path(tempfile.mkdtemp(prefix="ott-tests-"))
        self._settings = settings
        self._left = contextlib.ExitStack()
        self.url = ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start it for the first time."""
        kill = [str(PRIVATE_BROKER), "kill", str(self.folder)]
        self._left.enter_context(watchdog.afterwards(kill, ["rm", "-rf", str(self.folder)]))
        try:
            self.url = self.run("start", *(part for line in self._settings for part in ("--set", line)))
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End it and delete what it holds."""
        self.run("kill")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._left.close()

    async def start(self) -> None:
        """Start it again, on the port that it had; returns when it answers."""
        await asyncio.to_thread(self.run, "start")

    async def stop(self) -> None:
        """End it in order."""
        await asyncio.to_thread(self.run, "stop")

    async def kill(self) -> None:
        """End it as a crash does. Queues that were declared just now are noted down before, for RabbitMQ
        itself would lose them (private_broker.py)."""
        await self.flush()
        await self.crash()

    async def crash(self) -> None:
        """End it with what RabbitMQ has noted down so far."""
        await asyncio.to_thread(self.run, "kill")

    async def flush(self) -> None:
        """Have queues that were declared just now survive a crash."""
        await asyncio.to_thread(self.run, "flush")

    async def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on it; what it printed."""
        return await asyncio.to_thread(self.run, "ctl", *arguments)

    async def evaluate(self, expression: str) -> str:
        """Run an Erlang expression on it."""
        return await self.ctl("eval", expression)

    def run(self, command: str, *arguments: str) -> str:
        """Run deploy/private-broker on it; what it printed."""
        done = subprocess.run(
            [str(PRIVATE_BROKER), command, str(self.folder), *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"private-broker {command} failed: {done.stdout}{done.stderr}"
        return done.stdout.strip()
