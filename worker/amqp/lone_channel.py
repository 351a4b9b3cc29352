"""A channel that is opened once, on a connection of its own, for publishes that no second copy may follow.

By it a message is found for which RabbitMQ closes the connection: those that were under way are published one
at a time, on connections that carry nothing else.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final
from uuid import uuid4

from worker.amqp.confirm_channel import ConfirmChannel, error_of, is_blame
from worker.amqp.connection import ANSWER_TIMEOUT, Connection
from worker.amqp.ledger import Message, Publish
from worker.errors import BrokerUnreachable, PublishRefused, WorkerError
from worker.events import EventListener

LOST: Final = "the connection to RabbitMQ was lost"
APART_CONNECTIONS: Final = 8  # at a time
APART_TIMEOUT: Final = 5.0  # seconds for a confirm; then the others for its queue are not tried

Open = Callable[[], Awaitable[Connection]]
Settle = Callable[[Message, WorkerError | None], None]


class Poisonous(PublishRefused):
    """RabbitMQ closes the channel or the connection on which this message is published."""


class LoneChannel(ConfirmChannel):
    """`lost` is done, with the reason, when nothing can be published by it any more. Publishes that have no
    outcome then end in BrokerUnreachable: whether the broker took them is unknown."""

    def __init__(self, name: str, events: EventListener, connection: Connection, source: Open) -> None:
        super().__init__(name, events)
        self.connection = connection
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._source = source
        self._suspects: list[Publish] = []  # under way when it was lost
        self._closed_by: BaseException | None = None
        self._serving = asyncio.create_task(self._serve(), name=name)
        self._probing: asyncio.Task[set[Message]] | None = None

    @classmethod
    async def open(cls, name: str, events: EventListener, source: Open) -> "LoneChannel":
        """A channel on a connection from `source`, which is closed with it. Raises BrokerUnreachable."""
        return cls(name, events, await source(), source)

    @property
    def is_usable(self) -> bool:
        return self.connection.is_open and not self.lost.done()

    @property
    def was_closed_for_cause(self) -> bool:
        """Whether RabbitMQ closed it for a message."""
        return self.connection.was_closed_for_cause or is_blame(self._closed_by)

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future raises BrokerUnreachable where the outcome is unknown, or nothing can be
        published any more; else Unroutable, QueueFull or PublishRefused."""
        sent = super().send(message)
        if self.lost.done():
            self._end(BrokerUnreachable(self.lost.result()))
        return sent

    async def close(self) -> None:
        """Close the connection."""
        self._lose("closed")
        tasks = [task for task in (self._serving, self._probing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.abandon()
        await self.connection.close()

    async def poisonous(self) -> set[Message]:
        """The messages for which RabbitMQ closed it."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe(), name="probe")
        return await asyncio.shield(self._probing)

    async def _serve(self) -> None:
        try:
            with contextlib.suppress(BrokerUnreachable):
                await self.serve(self.connection)
        finally:  # also after a defect: nobody may wait for confirms that never come
            self._lose(LOST)

    def _late(self, publish: Publish) -> None:
        self._lose("RabbitMQ did not confirm in time")

    def _lost(self, under_way: list[Publish], reason: BaseException | None) -> None:
        self._suspects, self._closed_by = under_way, reason
        self._lose(LOST)

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
            self._end(error_of(self._closed_by) or BrokerUnreachable(why))

    def _end(self, error: WorkerError) -> None:
        for publish in self._pending.values():
            publish.fail(error)

    async def _probe(self) -> set[Message]:
        """Publish the suspects apart, to a queue that does not exist: no queue gets a second copy."""
        found: set[Message] = set()
        if not self.was_closed_for_cause:
            return found
        nowhere = uuid4().hex
        probes = {replace(one.message, routing_key=nowhere, body=b""): one.message for one in self._suspects}

        def settle(probe: Message, outcome: WorkerError | None) -> None:
            if isinstance(outcome, Poisonous):
                found.add(probes[probe])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await publish_apart(self._source, probes, settle)
        return found


async def publish_apart(source: Open, messages: Iterable[Message], settle: Settle) -> None:
    """Publish messages of which one has ended its connection, and `settle` each as soon as its outcome is
    known: None where it is confirmed, Poisonous where it ended its connection twice, else what the broker has
    against it. One of which nothing is known is not settled."""
    left, blamed, silent = deque(messages), set[Message](), set[str]()

    async def publish_in_turn() -> None:
        with contextlib.suppress(BrokerUnreachable):
            while left:
                channel = await LoneChannel.open("apart", EventListener(), source)
                try:
                    while left and not channel.lost.done():
                        await publish(channel, left.popleft())
                finally:
                    await channel.close()

    async def publish(channel: LoneChannel, message: Message) -> None:
        if message.queue in silent:
            return
        outcome = await _outcome(channel, message)
        if isinstance(outcome, Poisonous) and message not in blamed:
            blamed.add(message)
            left.append(message)
        elif isinstance(outcome, BrokerUnreachable):
            silent.add(message.queue)
        else:
            settle(message, outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(APART_CONNECTIONS, len(left))):
            group.create_task(publish_in_turn(), name="publish apart")


async def _outcome(channel: LoneChannel, message: Message) -> WorkerError | None:
    try:
        async with asyncio.timeout(APART_TIMEOUT):
            await channel.send(message)
    except TimeoutError:
        return BrokerUnreachable("RabbitMQ did not confirm in time")
    except BrokerUnreachable as error:
        return Poisonous() if channel.was_closed_for_cause else error
    except WorkerError as error:
        return error
    return None
