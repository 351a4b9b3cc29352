"""A RabbitMQ node of the tests' own, which they may kill (deploy/private-broker)."""

import asyncio
import shutil
import subprocess
import tempfile
from pathlib import Path

PRIVATE_BROKER = Path(__file__).parents[2] / "deploy" / "private-broker"


class Node:
    """The node in `folder`. Blocking calls run in a thread."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ott-faults-"))
        self.url = ""

    def up(self) -> None:
        """Start it for the first time."""
        self.url = self._run("start")

    def down(self) -> None:
        """End it and delete what it holds."""
        self._run("kill")
        shutil.rmtree(self._folder, ignore_errors=True)

    async def start(self) -> None:
        """Start it again, on the port that it had; returns when it answers."""
        await asyncio.to_thread(self._run, "start")

    async def stop(self) -> None:
        """End it in order."""
        await asyncio.to_thread(self._run, "stop")

    async def kill(self) -> None:
        """End it as a crash does. Queues that were declared just now are noted down before, for RabbitMQ
        itself would lose them (private_broker.py)."""
        await self.flush()
        await self.crash()

    async def crash(self) -> None:
        """End it with what RabbitMQ has noted down so far."""
        await asyncio.to_thread(self._run, "kill")

    async def flush(self) -> None:
        """Have queues that were declared just now survive a crash."""
        await asyncio.to_thread(self._run, "flush")

    async def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on it; what it printed."""
        return await asyncio.to_thread(self._run, "ctl", *arguments)

    async def evaluate(self, expression: str) -> str:
        """Run an Erlang expression on it."""
        return await self.ctl("eval", expression)

    def _run(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(PRIVATE_BROKER), command, str(self._folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"private-broker {command} failed: {done.stdout}{done.stderr}"
        return done.stdout.strip()
