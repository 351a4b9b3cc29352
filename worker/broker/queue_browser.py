"""Looking through a queue without changing it, and removing some of what lies there.

A quorum queue takes unacknowledged deliveries back in their order when the channel closes, however it
closes. So everything is consumed, nothing acknowledged, and the channel closed. That order holds for one
consumer. Two at once would each get a share, and the shares come back one after the other: so a lock keeps
others out, and what a killed process held is waited for.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Self

import aiormq.abc
import aiormq.exceptions

from worker.broker.connection import AMQP_ERRORS, Channel, Connection, describe
from worker.broker.subscription import Delivery, delivery_of
from worker.errors import BrokerUnreachable, QueueInUse, TopologyError, WorkerError

RPC_TIMEOUT = 30.0  # seconds
LOCK_PATIENCE = 3.0  # seconds; a killed process's connection takes a moment to end
LOOK_EVERY = 0.1  # seconds
QUIET = 1.0  # seconds without a delivery, then the queue is asked whether there is more
LARGEST_PREFETCH = 65_535
# Looking acknowledges nothing, so a consumer gives out once its prefetch is used up, and the next
# consumer of the channel goes on; the channel's consumers return what they hold in the order of their tags.
# (That is a small map of the broker's, which keeps its keys sorted up to 32 of them.)
FIRST_WINDOW = 2_000
WINDOWS = 32

Deliveries = AsyncGenerator[Delivery, None]


@contextlib.asynccontextmanager
async def lock(connection: Connection, queue: str) -> AsyncIterator[None]:
    """Keep other browsers of the queue out, for as long as this connection lives. Raises QueueInUse,
    TopologyError (there is no such queue) or BrokerUnreachable.

    Where the user may not declare the lock (an exclusive queue), only the queue's consumers are looked at.
    """
    channel = await _locked(connection, f"{queue}.lock")
    try:
        await _until_unused(connection, queue)
        yield
    finally:
        with contextlib.suppress(TimeoutError, *AMQP_ERRORS):
            async with asyncio.timeout(RPC_TIMEOUT):
                if channel is not None:
                    await channel.queue_delete(f"{queue}.lock")
                    await channel.close()


async def _locked(connection: Connection, name: str) -> Channel | None:
    patience = asyncio.get_running_loop().time() + LOCK_PATIENCE
    while True:
        channel = await connection.channel()
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                await channel.queue_declare(name, exclusive=True)
        except aiormq.exceptions.ChannelLockedResource:
            if asyncio.get_running_loop().time() > patience:
                raise QueueInUse("Another dead-letters command is at work: wait until it ends") from None
            await asyncio.sleep(LOOK_EVERY)
        except aiormq.exceptions.ChannelAccessRefused:
            return None
        except (TimeoutError, *AMQP_ERRORS) as error:
            raise _lost(error) from None
        else:
            return channel


async def _until_unused(connection: Connection, queue: str) -> None:
    """A consumer that is gone has returned what it held."""
    patience = asyncio.get_running_loop().time() + LOCK_PATIENCE
    while (await _state(connection, queue))[1]:
        if asyncio.get_running_loop().time() > patience:
            raise QueueInUse(f"Something else consumes from {queue}: end it first, or the order is lost")
        await asyncio.sleep(LOOK_EVERY)


async def depth(connection: Connection, queue: str) -> int:
    """Messages that are ready in the queue. Raises TopologyError or BrokerUnreachable."""
    return (await _state(connection, queue))[0]


async def _state(connection: Connection, queue: str) -> tuple[int, int]:
    """Ready messages, and consumers."""
    channel = await connection.channel()
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            declared = await channel.queue_declare(queue, passive=True)
            await channel.close()
    except aiormq.exceptions.ChannelNotFoundEntity:
        raise TopologyError(
            f"The queue {queue} is missing: start the worker once, or check OTT_PREFIX"
        ) from None
    except aiormq.exceptions.ChannelAccessRefused:
        raise TopologyError(f"The queue {queue} may not be read by this user") from None
    except (TimeoutError, *AMQP_ERRORS) as error:
        raise _lost(error) from None
    return declared.message_count or 0, declared.consumer_count or 0


class QueueBrowser:
    """The deliveries of one look, on a channel of its own. Everything that was not removed goes back to
    its place when the context ends. Raises TopologyError or BrokerUnreachable."""

    def __init__(self, connection: Connection, queue: str, *, window: int = FIRST_WINDOW) -> None:
        self._connection = connection
        self._queue = queue
        self._window = window
        self._arrived: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._credit = 0
        self._consumers: list[str] = []

    async def __aenter__(self) -> Self:
        self._channel = await self._connection.channel()
        self._channel.closing.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError, WorkerError, *AMQP_ERRORS):
            async with asyncio.timeout(RPC_TIMEOUT):
                await self._until_removed()
                await self._channel.close()
                await _until_unused(self._connection, self._queue)  # and the rest is back

    async def look(self, count: int) -> Deliveries:
        """The oldest `count` messages in their order, or fewer if there are fewer."""
        seen = windows = 0
        while seen < count:
            if not self._credit and not self._arrived:
                if windows == WINDOWS:
                    raise QueueInUse(f"{self._queue} holds more than the {seen} messages that were looked at")
                await self._consume(windows, min(LARGEST_PREFETCH, self._window << windows))
                windows += 1
            if not await self._more():
                return
            while self._arrived and seen < count:
                yield self._arrived.popleft()
                seen += 1

    async def take(self, count: int, held: int) -> Deliveries:
        """As `look`, where all but `held` of them will be removed while it goes on. One consumer does it:
        what is removed makes room for others, and order would be lost between two."""
        await self._consume(0, min(LARGEST_PREFETCH, held + self._window))
        for _ in range(count):
            if not await self._more():
                return
            yield self._arrived.popleft()

    async def remove(self, delivery: Delivery) -> None:
        """Take one that was looked at out of the queue, for good."""
        try:
            await self._channel.basic_ack(delivery.tag)
        except AMQP_ERRORS as error:
            raise _lost(error) from None
        self._credit += 1

    def check(self) -> None:
        """Raise BrokerUnreachable if the deliveries are the broker's again."""
        if self._channel.is_closed:
            raise BrokerUnreachable("The connection to RabbitMQ was lost: run the command again")

    async def _until_removed(self) -> None:
        """Wait until the queue knows what was removed. Of many acknowledgements the broker's channel keeps
        some back, until the queue has taken the first ones, and drops them if it is closed meanwhile. To
        cancel a consumer goes through the queue, behind those first ones, and then comes the rest's turn."""
        for tag in self._consumers:
            await self._channel.basic_cancel(tag)
        await self._channel.queue_declare(self._queue, passive=True)

    async def _consume(self, number: int, prefetch: int) -> None:
        async def take(message: aiormq.abc.DeliveredMessage) -> None:
            self._credit -= 1
            self._arrived.append(delivery_of(message))
            self._news.set()

        self._credit += prefetch
        tag = f"browse-{number:02d}"
        self._consumers.append(tag)
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                await self._channel.basic_qos(prefetch_count=prefetch)
                await self._channel.basic_consume(self._queue, take, consumer_tag=tag)
        except (TimeoutError, *AMQP_ERRORS) as error:
            raise _lost(error) from None

    async def _more(self) -> bool:
        """Wait for a delivery. False if there is none to come."""
        while not self._arrived:
            self.check()
            self._news.clear()
            if not self._credit:
                raise QueueInUse(
                    f"{LARGEST_PREFETCH} messages of {self._queue} that do not match lie before the others: "
                    "work on those first"
                )
            try:
                async with asyncio.timeout(QUIET):
                    await self._news.wait()
            except TimeoutError:
                if await depth(self._connection, self._queue) == 0:
                    return False
        return True


def _lost(error: BaseException) -> BrokerUnreachable:
    return BrokerUnreachable(f"The connection to RabbitMQ was lost: {describe(error)}")
