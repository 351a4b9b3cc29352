"""A reply queue of one requester. It outlives a lost connection, and expires when nobody consumes it
again."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self
from urllib.parse import unquote, urlsplit

import aiormq.exceptions

from worker.amqp.causes import broker_errors
from worker.amqp.connection import ANSWER_TIMEOUT, Connection, connect
from worker.amqp.consumer import Delivery, Subscription
from worker.backoff import backoff
from worker.broker.topology import NO_DELIVERY_LIMIT, Arguments
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings, split_urls

PREFETCH = 500
GUEST = "guest"
RETRY_FIRST = 0.2  # seconds; the most that the first attempt to connect again waits
RETRY_MAX = 5.0  # seconds between attempts to connect

OnReply = Callable[[str, bytes], None]


def job_queue(settings: Settings, job: str) -> str:
    """The name of a job's reply queue: `PREFIX.job.USER.JOB`, so that permissions can keep the publishers'
    queues apart (deploy/rabbitmq/definitions --publisher), and `PREFIX.job.JOB` for RabbitMQ's user guest."""
    first, *_ = split_urls(settings.now("amqp_url"))
    user = unquote(urlsplit(first).username or GUEST)
    own = "" if user == GUEST else f"{user}."
    return f"{settings.prefix}.job.{own}{job}"


class ReplyQueue:
    """Consumes a reply queue while its context lasts, over as many connections as it takes.

    `on_reply` gets the correlation id and the body of each reply, and may get one twice. The reply is
    acknowledged when it has returned, and left with the broker if it raises a WorkerError. The queue is
    durable and not exclusive, because an exclusive one would end with its connection; it expires `expires`
    seconds after its last consumer.
    """

    def __init__(
        self, settings: Settings, name: str, on_reply: OnReply, *, expires: float, events: EventListener
    ) -> None:
        self.name: Final = name
        self.waiting_at_start = 0
        self._settings = settings
        self._on_reply = on_reply
        self._expires = int(expires * 1000)
        self._events = events
        self._connection: Connection | None = None
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._keep = False

    async def __aenter__(self) -> Self:
        """Raises BrokerUnreachable, or TopologyError if the queue may not be declared."""
        self.waiting_at_start = await self._open()
        self._task = asyncio.create_task(self._keep_open(), name="reply-queue")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._close(delete=not self._keep)

    def keep(self) -> None:
        """Leave the queue to expire instead of deleting it at the end: somebody may come back for it."""
        self._keep = True

    async def _keep_open(self) -> None:
        failures = 0
        while True:
            if self._subscription is not None:
                # Shielded: to cancel this task must not end the subscription before it was closed.
                why = await asyncio.shield(self._subscription.ended)
                self._events.subscription_ended(str(why))
                await self._close(delete=False)
            try:
                await self._open()
                failures = 0
            except (BrokerUnreachable, TopologyError) as error:
                self._events.broker_unreachable(str(error))
                await asyncio.sleep(backoff(failures + 1, RETRY_FIRST, RETRY_MAX))
                failures = min(failures + 1, 10)

    async def _open(self) -> int:
        self._connection = await connect(self._settings, f"replies {self.name}")
        try:
            waiting = await self._declare(self._connection)
            subscription = Subscription(self._connection, self.name, PREFETCH)
            await subscription.open(lambda delivery: self._take(subscription, delivery))
        except BaseException:
            await self._close(delete=False)
            raise
        self._subscription = subscription
        self._events.subscribed(PREFETCH)
        return waiting

    async def _close(self, *, delete: bool) -> None:
        connection, subscription = self._connection, self._subscription
        self._connection = self._subscription = None
        if subscription is not None:
            await subscription.close()
        if connection is not None:
            if delete and connection.is_open:
                await self._delete(connection)
            await connection.close()

    def _take(self, subscription: Subscription, delivery: Delivery) -> None:
        with suppress(WorkerError):
            self._on_reply(delivery.properties.text("correlation_id") or "", delivery.body)
            subscription.ack(delivery)

    async def _declare(self, connection: Connection) -> int:
        arguments: Arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": NO_DELIVERY_LIMIT,
            "x-expires": self._expires,
        }
        channel = await connection.raw_channel()
        with broker_errors("The reply queue could not be declared"):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    declared = await channel.queue_declare(self.name, durable=True, arguments=arguments)
                    await channel.close()
            except aiormq.exceptions.ChannelAccessRefused:
                raise TopologyError(
                    f"The reply queue {self.name} may not be declared by this user: "
                    "grant configure and read on it (see deploy/rabbitmq/definitions --publisher)"
                ) from None
        return declared.message_count or 0

    async def _delete(self, connection: Connection) -> None:
        with suppress(BrokerUnreachable), broker_errors("It expires"):
            async with asyncio.timeout(ANSWER_TIMEOUT):
                channel = await connection.raw_channel()
                await channel.queue_delete(self.name)
