"""A requester sends requests to the worker, and receives the replies on its own queue (contract §2, §4). The
Python client, `submit` and `demo` use it. It works on any aio-pika connection."""

import asyncio
import math
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Final, Self
from weakref import WeakValueDictionary

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import DeliveryError, PublishError
from aiormq.exceptions import AMQPChannelError, ChannelNotFoundEntity
from yarl import URL

from worker.amqp.causes import broker_errors, object_errors
from worker.amqp.connection import Connection, answered, cancel_all, connected, keep_connected, opened
from worker.amqp.queue import FORBIDDEN, MISSING
from worker.backoff import REFUSED
from worker.broker.topology import NO_DELIVERY_LIMIT, Arguments, Topology
from worker.contract.words import ACCOUNT_HEADER, AS_OF_HEADER, REQUEST_KEY
from worker.errors import BrokerUnreachable, Problem, PublishRefused, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings, split_urls

PREFETCH: Final = 500
MISSING_FOR: Final = 30.0  # seconds that the requests queue may be missing
CHECK_INTERVAL: Final = 5.0  # seconds of silence before RabbitMQ is checked
CONFIRM_TIMEOUT: Final = 20.0  # seconds without a confirm, while one is pending
LOST: Final = "The connection to RabbitMQ was lost"
REFUSALS: Final = (DeliveryError, AMQPChannelError)  # RabbitMQ rejects or refuses the message

OnReply = Callable[[str, bytes], None]


class Requester:
    """Sends and receives within its context, and reconnects as needed.

    Entering raises BrokerUnreachable, or TopologyError: the worker's queues are missing, or the reply queue
    may not be declared. `on_reply` is called with the correlation id and body of each reply, possibly twice.
    The reply is acknowledged when `on_reply` returns, and not if it raises a WorkerError. The reply queue is
    durable and not exclusive, because an exclusive queue would be deleted with its connection; it expires
    `expires` seconds after its last consumer. Without `on_reply` there is no such queue, and replies go to
    the shared one."""

    def __init__(
        self,
        settings: Settings,
        job: str,
        on_reply: OnReply | None,
        *,
        expires: float,
        events: EventListener,
        connection: AbstractConnection | None = None,
    ) -> None:
        """A `connection` of the caller stays open at the end."""
        first, *others = split_urls(settings.now("amqp_url"))
        self._other_nodes = len(others) if connection is None else 0  # to try before entering fails
        url = URL(first) if connection is None else getattr(connection, "url", URL())
        # The queue's name contains the user's, so that permissions can separate publishers.
        own = f"{url.user}.{job}" if url.user not in (None, "", "guest") else job
        self.queue: Final = f"{settings.prefix}.job.{own}" if on_reply else None
        self.waiting_at_start = 0
        self._names = Topology(settings.prefix)
        self._source: Callable[[], AbstractAsyncContextManager[AbstractConnection]]
        self._source = partial(connected, settings, f"requests {job}")
        if connection is not None:
            self._source = lambda: nullcontext(connection)
        self._on_reply = on_reply
        self._expires = int(expires * 1000)
        self._events = events
        self._keeps_queue = self._is_ending = self._has_connected = False
        self._connection: AbstractConnection
        self._publishing: AbstractChannel
        self._connected = asyncio.Event()
        self._reopening = asyncio.Lock()
        self._alone = asyncio.Lock()
        self._lanes: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unconfirmed = 0
        self._confirmed_at = 0.0
        self._replies = 0
        self._lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeping = asyncio.create_task(
            keep_connected(self._source, self._use, self._failed), name="requester"
        )
        try:
            await self._opened
        except BaseException:
            await cancel_all(self._keeping)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_ending = True
        await cancel_all(*self._tasks, self._keeping)

    def keep_queue(self) -> None:
        """Let the queue expire instead of deleting it at the end, so that a job can be resumed."""
        self._keeps_queue = True

    def send(
        self,
        body: bytes,
        *,
        request_id: str,
        account_id: str | None = None,
        as_of: str | None = None,
        replies: bool = True,
        lane: Hashable = None,
    ) -> "asyncio.Task[None]":
        """Publish one request. Its reply goes to the reply queue or, without `replies`, to the shared one.
        The task is done when the broker has confirmed; it raises PublishRefused, or TopologyError if there is
        no requests queue. While the queue is full, it retries. Requests of one lane keep their order: each
        waits for the confirm of the one before. Cancel the task to abandon the request; one that was sent
        still arrives."""
        headers = {ACCOUNT_HEADER: account_id, AS_OF_HEADER: as_of}
        message = Message(
            body,
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=request_id,
            correlation_id=request_id,
            reply_to=self.queue if replies else None,
            headers={name: value for name, value in headers.items() if value},
        )
        task = asyncio.create_task(self._send(message, lane), name=f"request {request_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _send(self, message: Message, lane: Hashable) -> None:
        refusals, missing_since = 0, math.inf
        clock = asyncio.get_running_loop().time
        # Locks are fair, so each request waits for all earlier ones of its lane.
        turn = asyncio.Lock() if lane is None else self._lanes.setdefault(lane, asyncio.Lock())
        async with turn:
            while True:
                try:
                    return await self._publish(message)
                except BrokerUnreachable:
                    await asyncio.sleep(REFUSED.first)
                    continue
                except (PublishError, ChannelNotFoundEntity):  # it was routed to no queue
                    missing_since = min(missing_since, clock())
                    if clock() - missing_since > MISSING_FOR:
                        raise TopologyError(
                            f"No queue receives requests from the exchange {self._names.entry}: "
                            "start the worker, which declares it"
                        ) from None
                except AMQPChannelError:
                    raise PublishRefused(
                        f"The broker refuses requests to the exchange {self._names.entry}: "
                        "this user may not write to it, or the message is larger than the broker accepts"
                    ) from None
                except DeliveryError:  # the queue is full
                    pass
                refusals += 1
                await asyncio.sleep(REFUSED.ceiling(refusals))

    async def _publish(self, message: Message) -> None:
        """Publish, and wait for the confirm. Raises BrokerUnreachable, or RabbitMQ's error for the message.
        When RabbitMQ closes a channel without naming the message, each one is published again on its own
        channel."""
        async with self._reopening:
            await self._connected.wait()
            connection, channel = self._connection, self._publishing
            if channel.is_closed:
                with broker_errors(LOST):
                    async with answered(connection, LOST):
                        await channel.reopen()
        try:
            await self._publish_on(channel, message)
        except AMQPChannelError:
            async with self._alone, opened(connection, LOST, confirms=True, passes=REFUSALS) as own:
                await self._publish_on(own, message)

    async def _publish_on(self, channel: AbstractChannel, message: Message) -> None:
        clock = asyncio.get_running_loop().time
        if not self._unconfirmed:
            self._confirmed_at = clock()
        self._unconfirmed += 1
        try:
            with broker_errors(LOST, REFUSALS):
                exchange = await channel.get_exchange(self._names.entry, ensure=False)
                await exchange.publish(message, REQUEST_KEY)
            self._confirmed_at = clock()
        finally:
            self._unconfirmed -= 1

    async def _use(self, connection: AbstractConnection) -> None:
        self._has_connected = True
        if not self._opened.done():
            await count_workers(connection, self._names)
        self._lost.clear()
        async with (
            opened(connection, "The reply queue could not be consumed") as channel,
            opened(connection, LOST, confirms=True) as self._publishing,
        ):
            channel.close_callbacks.add(self._on_lost)
            queue = await self._consume(connection, channel) if self.queue else None
            self._connection = connection
            self._connected.set()
            self._events.subscribed(self.queue or "", PREFETCH)
            if not self._opened.done():
                self._opened.set_result(None)
            try:
                await self._until_lost(connection, queue)
            finally:
                self._connected.clear()
                if queue is not None and self._is_ending and not self._keeps_queue:
                    with suppress(WorkerError), broker_errors("It expires"):
                        async with answered(connection, "It expires"):
                            await queue.cancel(self._tag)
                            await queue.delete(if_unused=False, if_empty=False)

    async def _consume(self, connection: AbstractConnection, channel: AbstractChannel) -> AbstractQueue:
        """Declare the reply queue, and consume it."""
        assert self.queue is not None
        arguments: Arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": NO_DELIVERY_LIMIT,
            "x-expires": self._expires,
        }
        forbidden = (
            "may not be declared by this user: grant configure and read on it "
            "(see deploy/rabbitmq/definitions --publisher)"
        )
        raw = await channel.get_underlay_channel()
        raw.on_consumer_cancel_callbacks.add(self._on_lost)
        async with answered(connection, "The reply queue could not be declared"):
            with object_errors(f"reply queue {self.queue}", MISSING, forbidden):
                await channel.set_qos(PREFETCH)
                queue = await channel.declare_queue(self.queue, durable=True, arguments=arguments)
                self._tag = await queue.consume(self._take)
        if not self._opened.done():
            self.waiting_at_start = queue.declaration_result.message_count or 0
        return queue

    async def _until_lost(self, connection: AbstractConnection, queue: AbstractQueue | None) -> None:
        """Raise BrokerUnreachable when the connection is no longer usable. A node that is cut off keeps its
        clients. It then confirms nothing and cannot add a consumer, because most nodes of the queue must
        agree."""
        while True:
            replies = self._replies
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._lost.wait()
                raise BrokerUnreachable(LOST)
            now = asyncio.get_running_loop().time()
            if isinstance(connection, Connection):
                if connection.wire.is_blocked:  # by an alarm; confirms follow when it has ended
                    self._confirmed_at = now
                if self._unconfirmed and now - self._confirmed_at > CONFIRM_TIMEOUT:
                    connection.abort()
                    raise BrokerUnreachable("RabbitMQ does not confirm")
            if queue is not None and self._replies == replies:
                async with answered(connection, "The reply queue"):
                    await queue.cancel(await queue.consume(self._take))

    async def _take(self, message: AbstractIncomingMessage) -> None:
        assert self._on_reply is not None
        self._replies += 1
        with suppress(WorkerError), broker_errors(LOST):
            self._on_reply(message.correlation_id or "", message.body)
            await message.ack()

    def _on_lost(self, *_: object) -> None:
        self._lost.set()

    def _failed(self, error: Exception) -> None:
        has_connected, self._has_connected = self._has_connected, False
        if not self._opened.done():
            # A node that is cut off accepts connections and answers nothing.
            if has_connected and self._other_nodes > 0 and isinstance(error, BrokerUnreachable):
                self._other_nodes -= 1
            else:
                self._opened.set_exception(error)
        self._events.broker_unreachable(str(error))


async def look_for_workers(settings: Settings) -> int:
    """The number of consumers of the requests queue; changes nothing. Raises TopologyError (the queue or the
    exchange is missing or forbidden) or BrokerUnreachable."""
    async with connected(settings, "look") as connection:
        return await count_workers(connection, Topology(settings.prefix))


async def count_workers(connection: AbstractConnection, names: Topology) -> int:
    """As `look_for_workers`, on an open connection."""
    what = f"The exchange {names.entry} could not be looked at"
    try:
        async with opened(connection, what) as channel, answered(connection, what):
            with object_errors(f"exchange {names.entry}", MISSING, FORBIDDEN):
                await channel.declare_exchange(names.entry, "topic", durable=True, passive=True)
            with object_errors(f"queue {names.requests}", MISSING, FORBIDDEN):
                requests = await channel.declare_queue(names.requests, passive=True)
    except TopologyError as error:
        if error.problem is not Problem.MISSING:
            raise
        raise TopologyError(f"The worker's queues are missing at {names.entry}: {MISSING}") from None
    return requests.declaration_result.consumer_count or 0
