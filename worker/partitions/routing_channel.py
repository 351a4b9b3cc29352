"""The channel on which a router publishes. It is opened once, on a connection of its own, and never again
after a publish whose outcome is unknown. So no second copy of a request can follow a newer request."""

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


class RouterChannel:
    """`lost` is done, with the reason, when nothing can be published by it any more."""

    def __init__(self, settings: Settings, events: EventListener) -> None:
        self._settings = settings
        self._publishing = ConfirmChannel("router", events)
        self._connection: Connection | None = None
        self._serving: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Raises BrokerUnreachable."""
        connection = self._connection = await connect(self._settings, "router")
        self._serving = asyncio.create_task(self._publishing.serve(connection), name="router channel")
        self._serving.add_done_callback(lambda _: self._is_lost("the connection to RabbitMQ was lost"))

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. Raises BrokerUnreachable where nothing can be published any more; the future does where
        the outcome is unknown, else Unroutable, QueueFull or PublishRefused."""
        if self.lost.done():
            raise BrokerUnreachable(self.lost.result())
        sent = self._publishing.send(message)
        sent.add_done_callback(self._sent)
        return sent

    async def depth(self, queue: str) -> int:
        """Messages that are ready in a queue. Raises BrokerUnreachable, also where it is missing."""
        assert self._connection is not None
        try:
            return (await look(self._connection, queue)).ready
        except TopologyError as error:
            raise BrokerUnreachable(str(error)) from None

    async def close(self) -> None:
        """Close the connection; publishes that are not confirmed are cancelled."""
        self._is_lost("closed")
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._publishing.abandon()
        if self._connection is not None:
            await self._connection.close()

    async def poisonous(self) -> set[Message]:
        """The messages for which RabbitMQ closed the connection, once it is closed. To find them they are
        published apart, to no queue, so that no second copy comes to a partition."""
        channel, connection = self._publishing, self._connection
        if connection is None or not (connection.was_closed_for_cause or is_blame(channel.closed_by)):
            return set()
        nowhere = uuid4().hex
        found: set[Message] = set()
        probes = {
            replace(one.message, routing_key=nowhere, body=b""): one.message for one in channel.suspects
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
