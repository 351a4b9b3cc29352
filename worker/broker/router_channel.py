"""The channel on which a router publishes. It is opened once, on a connection of its own, and never again
after a publish whose outcome is unknown. So no second copy of a request can follow a newer request."""

import asyncio

from worker.amqp.causes import broker_errors
from worker.amqp.confirm_channel import ConfirmChannel, Message
from worker.amqp.connection import Channel, Connection, connect
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.settings import Settings

ANSWER_TIMEOUT = 10.0  # seconds


class RouterChannel:
    """`lost` is done, with the reason, when nothing can be published by it any more."""

    def __init__(self, settings: Settings, events: EventListener) -> None:
        self._settings = settings
        self._publishing = ConfirmChannel("router", events, publishes_again=False)
        self._connection: Connection | None = None
        self._asking: Channel | None = None
        self._serving: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Raises BrokerUnreachable."""
        connection = self._connection = await connect(self._settings, "router")
        self._asking = await connection.channel()
        self._serving = asyncio.create_task(self._publishing.serve(connection), name="router channel")
        self._serving.add_done_callback(lambda _: self._is_lost("the connection to RabbitMQ was lost"))

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future raises BrokerUnreachable where the outcome is unknown, else Unroutable,
        QueueFull or PublishRefused."""
        sent = self._publishing.send(message)
        sent.add_done_callback(self._sent)
        return sent

    async def depth(self, queue: str) -> int:
        """Messages that are ready in a queue. Raises BrokerUnreachable, also where it is missing."""
        assert self._asking is not None
        with broker_errors(f"The queue {queue} does not answer"):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                declared = await self._asking.queue_declare(queue, passive=True)
        return declared.message_count or 0

    async def close(self) -> None:
        """Close the connection; publishes that are not confirmed are cancelled."""
        self._is_lost("closed")
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
        self._publishing.abandon()
        if self._connection is not None:
            await self._connection.close()

    def _sent(self, sent: "asyncio.Future[None]") -> None:
        if not sent.cancelled() and isinstance(sent.exception(), BrokerUnreachable):
            self._is_lost(str(sent.exception()))

    def _is_lost(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
