"""Running `ott-worker` as a user does, and dead letters to try it on."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

import aio_pika

from tests.rig import Requester, Rig, environment, messenger
from worker.broker.subscription import COUNTS
from worker.sandbox.faults import Status
from worker.settings import Settings


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


async def begin(settings: Settings, *arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment(settings), **variables},
    )


async def ott_worker(settings: Settings, *arguments: str, stdin: str = "", **variables: str) -> Ended:
    """Run a command to its end, without a terminal."""
    process = await begin(settings, *arguments, **variables)
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    return Ended(process.returncode or 0, out.decode(), err.decode())


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
    return [await requester.take("dead") for _ in range(await requester.depth("dead"))]


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
