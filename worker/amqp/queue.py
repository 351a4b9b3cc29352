"""One look at a queue (what waits in it, and who consumes it), looking through it without changing it, and
removing some of its messages.

A quorum queue takes unacknowledged deliveries back in their order when the channel closes, however it closes.
So a browser consumes everything, acknowledges nothing and closes the channel. That order holds for one
consumer. With two consumers each requeues its share in turn, which reorders the queue. So a lock keeps others
out, and a browser waits until the messages of a killed process are back.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import aiormq.exceptions

from worker.amqp.causes import Cause, broker_errors, object_errors
from worker.amqp.connection import Connection, RawChannel, no_callback
from worker.amqp.consumer import Delivery, delivery_of
from worker.amqp.properties import Properties
from worker.errors import BrokerUnreachable, Problem, QueueInUse, TopologyError, WorkerError

MISSING = "start the worker once, or check OTT_PREFIX and the virtual host in OTT_AMQP_URL"
FORBIDDEN = (
    "may not be looked at by this user: from RabbitMQ 4.3 on that needs a permission on it. "
    "Grant write, which is the least"
)
RPC_TIMEOUT = 30.0  # seconds
LOCK_TIMEOUT = 3.0  # seconds; a killed process's connection takes a moment to end
LOOK_TIMEOUT = 60.0  # seconds that a look waits for another one
POLL_INTERVAL = 0.1  # seconds
QUIET = 1.0  # seconds without a delivery, then the queue is asked whether there is more
QUIET_ROUNDS = 2  # empty answers before the queue counts as empty; deliveries may be on their way
WAIT_TIMEOUT = 30.0  # seconds for a queue whose leader does not answer
LARGEST_PREFETCH = 65_535
# A look acknowledges nothing, so a consumer gets no more messages once its prefetch is used up. The next
# consumer of the channel goes on. When the channel closes, its consumers return their messages in the order
# of their tags. (The broker keeps them in a small map, which is sorted up to 32 keys.)
FIRST_WINDOW = 2_000
WINDOWS = 32
TAKE_WINDOW = 100  # deliveries asked for beyond the number that is known
HELD_BYTES = 16 * 2**20  # bytes of deliveries that have arrived and were not looked at yet
LOST = "The connection to RabbitMQ was lost"
BARRIER = "browse-barrier"  # consumer tag

Deliveries = AsyncGenerator[Delivery, None]


OnWait = Callable[[], Awaitable[None]]


class QueueState(NamedTuple):
    """Messages that are ready, and consumers; of a single active consumer queue the active one only. RabbitMQ
    reports zero for both if the queue's leader does not answer within a quarter of a second."""

    ready: int
    consumers: int


async def look(connection: Connection, queue: str) -> QueueState:
    """Look at a queue; changes nothing. Raises TopologyError (it is missing, or may not be looked at) or
    BrokerUnreachable."""
    async with connection.asked(f"{queue} could not be looked at") as channel:
        with object_errors(f"queue {queue}", MISSING, FORBIDDEN):
            declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    return QueueState(declared.message_count or 0, declared.consumer_count or 0)


async def exists(connection: Connection, queue: str) -> bool:
    """Whether there is such a queue; also one that this user may not look at. Raises BrokerUnreachable."""
    try:
        await look(connection, queue)
    except TopologyError as error:
        return error.problem is not Problem.MISSING
    return True


async def delete(connection: Connection, queue: str) -> int:
    """Delete a queue; the number of messages that were in it. Raises TopologyError where this user may not,
    or BrokerUnreachable."""
    forbidden = "may not be deleted by this user: it needs the right to configure it, as the provisioner has"
    async with connection.asked(f"{queue} could not be deleted") as channel:
        with object_errors(f"queue {queue}", MISSING, forbidden):
            return (await channel.queue_delete(queue)).message_count or 0


async def _silently() -> None:
    """The default for `on_wait`."""


@contextlib.asynccontextmanager
async def lock(
    connection: Connection, queue: str, on_wait: OnWait = _silently, *, timeout: float = LOOK_TIMEOUT
) -> AsyncIterator[None]:
    """Keep other browsers of the queue out, for as long as this connection lives. Waits for the one that is
    there, and calls `on_wait` where that takes a while. Raises QueueInUse (it lasts too long), TopologyError
    (there is no such queue) or BrokerUnreachable.

    Where the user may not declare the lock (an exclusive queue), only the queue's consumers are looked at.
    """
    async with hold(connection, f"{queue}.lock", on_wait, timeout=timeout):
        await _until_unused(connection, queue)
        yield


@contextlib.asynccontextmanager
async def hold(
    connection: Connection, name: str, on_wait: OnWait, *, timeout: float = math.inf
) -> AsyncIterator[None]:
    """Hold the exclusive queue `name`. While another connection holds it this waits, at most `timeout`
    seconds, and calls `on_wait` once. Where the user may not declare the queue, nothing is held."""
    clock = asyncio.get_running_loop().time
    tell_at, give_up_at = clock() + LOCK_TIMEOUT, clock() + timeout
    while (is_held := await _claim(connection, name)) is False:
        if clock() > give_up_at:
            raise QueueInUse("Another dead-letters command is at work: wait until it ends")
        if clock() > tell_at:
            tell_at = math.inf
            await on_wait()
        await asyncio.sleep(POLL_INTERVAL)
    try:
        yield
    finally:
        if is_held:
            with contextlib.suppress(BrokerUnreachable):
                async with connection.asked(LOST) as channel:
                    await channel.queue_delete(name)


async def _claim(connection: Connection, name: str) -> bool | None:
    """Whether the exclusive queue is ours now; None where this user may not declare it."""
    async with connection.asked(LOST) as channel:
        try:
            await channel.declare_queue(name, exclusive=True)
        except aiormq.exceptions.ChannelLockedResource:
            return False
        except aiormq.exceptions.ChannelAccessRefused:
            return None
        return True


async def _until_unused(connection: Connection, queue: str) -> None:
    """Wait until the queue has no consumer: only then has it back what its last consumer held."""
    deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT
    while (await _state(connection, queue)).consumers:
        if asyncio.get_running_loop().time() > deadline:
            raise QueueInUse(f"Something else consumes from {queue}: end it first, or the order is lost")
        await asyncio.sleep(POLL_INTERVAL)


async def depth(connection: Connection, queue: str) -> int:
    """Messages that are ready in the queue. Raises TopologyError or BrokerUnreachable."""
    return (await _state(connection, queue)).ready


async def _state(connection: Connection, queue: str) -> QueueState:
    """RabbitMQ reports zero for both if the queue's leader does not answer within a quarter of a second.
    Basic.Get waits for the leader, so it tells an empty queue from a silent leader."""
    deadline = asyncio.get_running_loop().time() + WAIT_TIMEOUT
    while True:
        state = await look(connection, queue)
        if any(state) or await _is_empty(connection, queue):
            return state
        if asyncio.get_running_loop().time() > deadline:
            raise BrokerUnreachable(f"The leader of {queue} does not answer: try again later")


async def _is_empty(connection: Connection, queue: str) -> bool:
    """Get a message. It is back in its place when this ends, since there is no other consumer meanwhile."""
    async with connection.asked(LOST) as channel:
        with object_errors(f"queue {queue}", MISSING, "may not be read by this user"):
            message = await (await channel.get_queue(queue, ensure=False)).get(fail=False)
            if message is None:
                return True
            await message.reject(requeue=True)
    state = QueueState(0, 0)
    while state.ready <= (message.message_count or 0) and not state.consumers:
        await asyncio.sleep(POLL_INTERVAL)
        state = await look(connection, queue)
    return False


@dataclass(slots=True)
class QueueBrowser:
    """The deliveries of one look, on a channel of its own. Everything that was not removed goes back to its
    place when the context ends. Raises TopologyError or BrokerUnreachable, also at the end: then it is
    unknown whether the removed messages are gone. A body larger than `max_body_bytes` is not kept:
    `Delivery.oversize`."""

    _connection: Connection
    _queue: str
    _max_body_bytes: float = math.inf
    window: int = FIRST_WINDOW
    _channel: RawChannel = field(init=False)
    _arrived: deque[Delivery] = field(default_factory=deque)
    _arrived_bytes: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: int = 0
    _credit: int = 0
    _has_removed: bool = False

    async def __aenter__(self) -> Self:
        self._channel = await self._connection.raw_channel()
        self._channel.closing.add_done_callback(lambda _: self._news.set())
        self._connection.intercept(
            self._channel, self._take, keeps_body=lambda size: size <= self._max_body_bytes
        )
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        self._max_body_bytes = -1  # what arrives from now on goes back unseen
        self._connection.wire.resume_reading()
        try:
            if self._has_removed:
                with broker_errors(LOST):
                    async with asyncio.timeout(RPC_TIMEOUT):
                        await self._until_removed()
        except WorkerError:
            if error is None:
                raise BrokerUnreachable(
                    "The connection to RabbitMQ was lost at the end: what was removed last may be there again"
                ) from None
        finally:
            with contextlib.suppress(WorkerError), broker_errors(LOST):
                async with asyncio.timeout(RPC_TIMEOUT):
                    await self._channel.close()
                    await _until_unused(self._connection, self._queue)  # and the rest is back

    def look(self, count: int) -> Deliveries:
        """The oldest `count` messages in their order, or fewer if there are fewer."""
        return self._read(count, [min(LARGEST_PREFETCH, self.window << number) for number in range(WINDOWS)])

    def take(self, count: int, held: int) -> Deliveries:
        """As `look`, for a caller that removes all but `held` messages on the way. It uses one consumer:
        between two, order would be lost as removals make room. It takes all messages at once if it may,
        because messages that come back go behind those that were looked at before."""
        return self._read(count, [min(LARGEST_PREFETCH, max(count, held) + TAKE_WINDOW)])

    async def _read(self, count: int, prefetches: list[int]) -> Deliveries:
        """Read by one consumer after the other, with these prefetches."""
        consumers = enumerate(prefetches)
        for _ in range(count):
            if not self._arrived and not self._credit:
                number, prefetch = next(consumers, (0, 0))
                if not prefetch:
                    raise QueueInUse(
                        f"The {self._seen} oldest messages of {self._queue} do not match: handle those first"
                    )
                await self._consume(number, prefetch)
            if not await self._more():
                return
            delivery = self._arrived.popleft()
            self._seen += 1
            self._arrived_bytes -= len(delivery.body)
            if self._arrived_bytes <= HELD_BYTES:
                self._connection.wire.resume_reading()
            yield delivery

    async def remove(self, delivery: Delivery) -> None:
        """Remove a message that was looked at from the queue, for good."""
        with broker_errors(LOST):
            await self._channel.basic_ack(delivery.tag)
        self._credit += 1
        self._has_removed = True

    def check(self) -> None:
        """Raise BrokerUnreachable if the deliveries are the broker's again."""
        if not self._channel.is_closed:
            return
        closing = self._channel.closing
        reason = None if closing.cancelled() else closing.exception()
        if isinstance(reason, aiormq.exceptions.ConnectionInternalError):
            raise BrokerUnreachable(
                f"Message {self._seen + 1} of {self._queue} cannot be looked at, nor can those behind it: "
                f"{Cause.UNDELIVERABLE}. An AMQP 1.0 client can take it out"
            )
        raise BrokerUnreachable("The connection to RabbitMQ was lost: run the command again")

    async def _until_removed(self) -> None:
        """Wait until the queue has taken every acknowledgement. The broker's channel holds some of them back
        until the queue has taken the first ones, and drops them if the channel is closed meanwhile.

        The queue has taken them all when it has delivered a message for each of them. If it has nothing left
        to deliver, adding a consumer does the same: that command passes through the queue behind the
        acknowledgements. The consumer has a lower priority, so it is never given a message."""
        while self._credit and await depth(self._connection, self._queue):
            self.check()
            await asyncio.sleep(POLL_INTERVAL)
        if self._credit:
            await self._channel.basic_consume(
                self._queue, no_callback, consumer_tag=BARRIER, arguments={"x-priority": -1}
            )
            await self._channel.queue_declare(self._queue, passive=True)

    async def _consume(self, number: int, prefetch: int) -> None:
        self._credit += prefetch
        try:
            with broker_errors(LOST):
                async with asyncio.timeout(RPC_TIMEOUT):
                    await self._channel.basic_qos(prefetch_count=prefetch)
                    await self._channel.basic_consume(
                        self._queue, no_callback, consumer_tag=f"browse-{number:02d}"
                    )
        except BrokerUnreachable:
            if not self._channel.is_closed:
                raise
            # The first deliveries can end the connection before it answers: `check` tells why, behind them.

    def _take(self, method: bytes, properties: Properties, body: bytes, dropped: int) -> None:
        self._credit -= 1
        self._arrived.append(delivery_of(method, properties, body, dropped))
        self._arrived_bytes += len(body)
        if self._arrived_bytes > HELD_BYTES:
            self._connection.wire.pause_reading()
        self._news.set()

    async def _more(self) -> bool:
        """Wait for a delivery. False if the queue has no more."""
        quiet = 0
        while not self._arrived:
            self.check()
            self._news.clear()
            try:
                async with asyncio.timeout(QUIET):
                    await self._news.wait()
            except TimeoutError:
                quiet = 0 if await depth(self._connection, self._queue) else quiet + 1
                if quiet == QUIET_ROUNDS and not self._arrived:
                    return False
        return True
