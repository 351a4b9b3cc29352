"""Running `ott-worker` as a user does, and dead letters to try it on."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import sys
import termios
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import aio_pika
from typer.testing import CliRunner

from tests.rig import Requester, Rig, environment, messenger
from worker.amqp.consumer import COUNTS
from worker.cli.app import app
from worker.sandbox.faults import Status
from worker.settings import Settings

# A command that runs in this process takes its standard streams and its environment.
_STREAMS = threading.Lock()
PIPES: Mapping[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)


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
    settings: Settings, *arguments: str, process: Mapping[str, Any] = PIPES, **variables: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        *arguments,
        **{**PIPES, **process},
        env={**environment(settings), **variables},
    )


class Terminal:
    """A terminal of its own, on which a command asks and is answered."""

    def __enter__(self) -> Self:
        self._ours, self.theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._shown = b""
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)
        os.close(self.theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def shown(self) -> str:
        """What stands there by now."""
        with contextlib.suppress(BlockingIOError):
            self._shown += os.read(self._ours, 65536)
        return self._shown.decode()

    def take_over(self) -> None:
        """Make it the terminal of this process, which must be a new one."""
        os.setsid()
        fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0)


async def said(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until the command has said this on standard error, be it without a line's end."""
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readuntil(text.encode()), 30)


async def ott_worker(settings: Settings, *arguments: str, stdin: str = "", **variables: str) -> Ended:
    """Run a command to its end in this process, without a terminal and without signals."""

    def run() -> Ended:
        with _STREAMS:
            ended = CliRunner().invoke(
                app, arguments, stdin, environment(settings) | variables, catch_exceptions=False
            )
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    return await asyncio.wait_for(asyncio.to_thread(run), 60)


async def bury(requester: Requester, count: int, *, reasons: tuple[str, ...] = ("exhausted",)) -> list[str]:
    """Put dead letters of the worker's shape into the queue, without the worker's time; their ids."""
    ids = [f"letter-{i:05d}" for i in range(count)]
    messages = [
        aio_pika.Message(
            messenger(f"page-{i % 50}", f"version {i}"),
            message_id=request_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers={
                "x-ott-reason": reasons[i % len(reasons)],
                "x-ott-error": "10000 no answer",
                "x-ott-attempts": 6,
                "x-ott-received-at": f"2026-11-23T11:{i // 60 % 60:02d}:{i % 60:02d}.{i:06d}Z",
                "x-ott-dead-at": f"2026-11-23T12:{i // 60 % 60:02d}:{i % 60:02d}.{i:06d}Z",
                "x-ott-request-id": request_id,
            },
        )
        for i, request_id in enumerate(ids)
    ]
    publish = requester.channel.default_exchange.publish
    for at in range(0, count, 500):
        await asyncio.gather(*(publish(m, f"{requester.prefix}.dead") for m in messages[at : at + 500]))
    return ids


async def dead_queue(requester: Requester) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """What lies in the dead queue, in its order; taken out for good."""
    return await requester.take_all("dead")


def unchanged(messages: list[aio_pika.abc.AbstractIncomingMessage]) -> list[tuple[Any, ...]]:
    """All that must not change."""
    kept = [{k: v for k, v in m.headers.items() if k not in COUNTS} for m in messages]
    return [(m.message_id, m.body, headers) for m, headers in zip(messages, kept, strict=True)]


async def turned_down(rig: Rig, requester: Requester, page_id: str, name: str, **properties: Any) -> None:
    """Have a request turned down, so that it lies in the dead queue."""
    rig.sandbox.faults.add(
        Status(path="registration", resource_id=page_id, status=403, errorcode=20002, message="No privileges")
    )
    reply = await requester.ask(messenger(page_id, name), **properties)
    rig.sandbox.heal()
    assert reply["status"] == "failed"
