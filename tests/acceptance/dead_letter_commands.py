"""A terminal to run commands on, and dead letters to try them on."""

import asyncio
import contextlib
import os
import pty
from typing import Any, Self

import aio_pika

from tests.commands import Ended, ott_worker
from tests.rig import Requester, Rig, messenger
from worker.amqp.consumer import COUNTS


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


async def dead_letters(rig: Rig, *arguments: str, stdin: str = "", **variables: str) -> Ended:
    """`ott-worker dead-letters`, with the settings of a rig."""
    return await ott_worker(rig.settings(), "dead-letters", *arguments, stdin=stdin, **variables)


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


def unchanged(messages: list[aio_pika.abc.AbstractIncomingMessage]) -> list[tuple[Any, ...]]:
    """All that must not change."""
    kept = [{k: v for k, v in m.headers.items() if k not in COUNTS} for m in messages]
    return [(m.message_id, m.body, headers) for m, headers in zip(messages, kept, strict=True)]
