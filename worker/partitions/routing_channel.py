"""The channel on which a router publishes in one epoch. It is opened once, on a connection of its own, and
never again. So no second copy of a request can follow a newer request in the same epoch."""

import asyncio
import contextlib
from dataclasses import replace
from functools import partial
from uuid import uuid4

from worker.amqp.confirm_channel import ConfirmChannel, Poisonous, is_blame, publish_apart
from worker.amqp.connection import ANSWER_TIMEOUT, Connection, connect
from worker.amqp.ledger import Message
from worker.amqp.queue import look
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

LOST = "the connection to RabbitMQ was lost"


class RouterChannel:
    """`lost` is done, with the reason, when nothing can be published by it any more."""

    def __init__(self, settings: Settings, events: EventListener, connection: Connection) -> None:
        self._settings = settings
        self._publishing = ConfirmChannel("router", events)
        self._connection = connection
        self._serving = asyncio.create_task(self._publishing.serve(connection), name="router channel")
        self._serving.add_done_callback(lambda _: self._is_lost(LOST))
        self._probing: asyncio.Task[set[Message]] | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, settings: Settings, events: EventListener) -> "RouterChannel":
        """Raises BrokerUnreachable."""
        return cls(settings, events, await connect(settings, "router"))

    @property
    def is_open(self) -> bool:
        return self._connection.is_open and not self.lost.done()

    @property
    def was_closed_for_cause(self) -> bool:
        """Whether RabbitMQ closed it for a message."""
        return self._connection.was_closed_for_cause or is_blame(self._publishing.closed_by)

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future raises BrokerUnreachable where the outcome is unknown, or nothing can be
        published any more; else Unroutable, QueueFull or PublishRefused."""
        if self.lost.done() or self._serving.done():
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            why = self.lost.result() if self.lost.done() else LOST
            sent.set_exception(BrokerUnreachable(why))
            return sent
        sent = self._publishing.send(message)
        sent.add_done_callback(self._sent)
        return sent

    async def depth(self, queue: str) -> int:
        """Messages that are ready in a queue. Raises BrokerUnreachable, also where it is missing."""
        try:
            return (await look(self._connection, queue)).ready
        except TopologyError as error:
            raise BrokerUnreachable(str(error)) from None

    async def close(self) -> None:
        """Close the connection; publishes that are not confirmed are cancelled."""
        self._is_lost("closed")
        tasks = [task for task in (self._serving, self._probing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._publishing.abandon()
        await self._connection.close()

    async def poisonous(self) -> set[Message]:
        """The messages for which RabbitMQ closed it."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe(), name="router apart")
        return await asyncio.shield(self._probing)

    async def _probe(self) -> set[Message]:
        """What was under way is published apart, to no queue, so that no second copy comes to a partition."""
        found: set[Message] = set()
        if not self.was_closed_for_cause:
            return found
        nowhere = uuid4().hex
        probes = {
            replace(one.message, routing_key=nowhere, body=b""): one.message
            for one in self._publishing.suspects
        }

        def settle(probe: Message, outcome: WorkerError | None) -> None:
            if isinstance(outcome, Poisonous):
                found.add(probes[probe])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await publish_apart(partial(connect, self._settings, "router apart"), probes, settle)
        return found

    def _sent(self, sent: "asyncio.Future[None]") -> None:
        if not sent.cancelled() and isinstance(sent.exception(), BrokerUnreachable):
            self._is_lost(str(sent.exception()))

    def _is_lost(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
