"""What the benchmark asks of RabbitMQ: queues made, filled, counted and removed."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

import aiormq
from aiormq.abc import ChannelFrame
from pamqp import commands, header

QUORUM = {"x-queue-type": "quorum"}
BATCH = 500  # messages in one write


@dataclass(frozen=True)
class Message:
    """One message to fill a queue with."""

    body: bytes
    properties: commands.Basic.Properties = field(default_factory=commands.Basic.Properties)


class Broker:
    """One connection of the benchmark's own. Use as a context manager."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        self._connection = await aiormq.connect(self._url)
        self._channel = await self._connection.channel(publisher_confirms=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    @property
    def version(self) -> str:
        return str(self._connection.server_properties["version"])

    async def declare(self, *queues: str) -> None:
        for queue in queues:
            await self._channel.queue_declare(queue, durable=True, arguments=QUORUM)

    async def count(self, queue: str) -> int:
        declared = await self._channel.queue_declare(queue, passive=True)
        return declared.message_count or 0

    async def delete(self, queues: Iterable[str], exchanges: Iterable[str] = ()) -> None:
        for queue in queues:
            await self._channel.queue_delete(queue)
        for exchange in exchanges:
            await self._channel.exchange_delete(exchange)

    async def fill(self, queue: str, message: Callable[[int], Message], count: int) -> None:
        """Put `count` messages into the queue, all but the last of each batch unconfirmed: the queue keeps
        its order, so with the last one confirmed the others are there."""
        plain = await self._connection.channel(publisher_confirms=False)
        publish = commands.Basic.Publish(exchange="", routing_key=queue)
        head = _frame(1, plain.number, struct.pack(">I", publish.index) + publish.marshal())
        for start in range(0, count, BATCH):
            frames = []
            for number in range(start, min(start + BATCH, count)):
                made = message(number)
                content = header.ContentHeader(0, len(made.body), made.properties).marshal()
                frames += [head, _frame(2, plain.number, content)]
                frames += [
                    _frame(3, plain.number, made.body[at : at + 100_000])
                    for at in range(0, len(made.body), 100_000)
                ]
            await plain.write_queue.put(ChannelFrame(payload=b"".join(frames), should_close=False))
            await plain.queue_declare(queue, passive=True)
        await plain.close()


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
