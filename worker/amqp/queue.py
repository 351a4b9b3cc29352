"""Looking at a queue's counts, browsing its messages without changing it, and removing some of them.

When a channel closes, for whatever reason, a quorum queue requeues unacknowledged deliveries in their order.
So a browser consumes everything, acknowledges nothing and closes the channel. The order holds for one
consumer: of two, each requeues its share in turn, which reorders the queue. So a lock excludes other
browsers, and a browser waits until the deliveries of a killed process are requeued."""

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
    "may not be looked at by this user: from RabbitMQ 4.3 on this needs a permission. Grant write on it, "
    "the smallest one"
)
RPC_TIMEOUT = 30.0  # seconds
LOCK_TIMEOUT = 3.0  # seconds; longer than a killed process's connection needs to end
LOOK_TIMEOUT = 60.0  # seconds that a browser waits for another one
POLL_INTERVAL = 0.1  # seconds
QUIET = 1.0  # seconds without a delivery before the queue's depth is checked
QUIET_ROUNDS = 2  # checks that find nothing before the queue counts as empty; deliveries may be in transit
WAIT_TIMEOUT = 30.0  # seconds for a queue whose leader does not answer
LARGEST_PREFETCH = 65_535
# A browser acknowledges nothing, so a consumer receives no more messages once its prefetch is used up. The
# next consumer of the channel continues. When the channel closes, its consumers requeue in the order of their
# tags. (The broker keeps the consumers in a small map, which is sorted up to 32 keys.)
FIRST_WINDOW = 2_000
WINDOWS = 32
TAKE_WINDOW = 100  # deliveries requested beyond the known number
HELD_BYTES = 16 * 2**20  # bytes of deliveries that have arrived and are not read yet
LOST = "The connection to RabbitMQ was lost"
BARRIER = "browse-barrier"  # consumer tag

Deliveries = AsyncGenerator[Delivery, None]


OnWait = Callable[[], Awaitable[None]]


class QueueState(NamedTuple):
    """Ready messages, and consumers (with a single active consumer, only the active one). RabbitMQ reports
    zero for both if the queue's leader does not answer within a quarter of a second."""

    ready: int
    consumers: int


async def look(connection: Connection, queue: str) -> QueueState:
    """A queue's counts; changes nothing. Raises TopologyError (missing or forbidden) or BrokerUnreachable."""
    async with connection.asked(f"{queue} could not be looked at") as channel:
        with object_errors(f"queue {queue}", MISSING, FORBIDDEN):
            declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    return QueueState(declared.message_count or 0, declared.consumer_count or 0)


async def exists(connection: Connection, queue: str) -> bool:
    """Whether a queue exists, even if this user may not look at it. Raises BrokerUnreachable."""
    try:
        await look(connection, queue)
    except TopologyError as error:
        return error.problem is not Problem.MISSING
    return True


async def delete(connection: Connection, queue: str) -> int:
    """Delete a queue, and return the number of messages in it. Raises TopologyError (missing or forbidden) or
    BrokerUnreachable."""
    forbidden = (
        "may not be deleted by this user: use one with the configure permission, as the provisioner has"
    )
    async with connection.asked(f"{queue} could not be deleted") as channel:
        with object_errors(f"queue {queue}", MISSING, forbidden):
            return (await channel.queue_delete(queue)).message_count or 0


async def _silently() -> None:
    """The default for `on_wait`."""


@contextlib.asynccontextmanager
async def lock(
    connection: Connection, queue: str, on_wait: OnWait = _silently, *, timeout: float = LOOK_TIMEOUT
) -> AsyncIterator[None]:
    """Exclude other browsers of the queue while this connection lives. Waits for the present one, and calls
    `on_wait` once if that takes a while. Raises QueueInUse (it waited too long), TopologyError (the queue is
    missing) or BrokerUnreachable.

    If the user may not declare the lock (an exclusive queue), only the queue's consumers are checked."""
    async with hold(connection, f"{queue}.lock", on_wait, timeout=timeout):
        await _until_unused(connection, queue)
        yield


@contextlib.asynccontextmanager
async def hold(
    connection: Connection, name: str, on_wait: OnWait, *, timeout: float = math.inf
) -> AsyncIterator[None]:
    """Hold the exclusive queue `name`. While another connection holds it this waits, at most `timeout`
    seconds, and calls `on_wait` once. If the user may not declare the queue, nothing is held."""
    clock = asyncio.get_running_loop().time
    report_at, give_up_at = clock() + LOCK_TIMEOUT, clock() + timeout
    while (is_held := await _claim(connection, name)) is False:
        if clock() > give_up_at:
            raise QueueInUse("Another dead-letters command is running: wait until it ends")
        if clock() > report_at:
            report_at = math.inf
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
    """Whether this connection holds the exclusive queue now; None if the user may not declare it."""
    async with connection.asked(LOST) as channel:
        try:
            await channel.declare_queue(name, exclusive=True)
        except aiormq.exceptions.ChannelLockedResource:
            return False
        except aiormq.exceptions.ChannelAccessRefused:
            return None
        return True


async def _until_unused(connection: Connection, queue: str) -> None:
    """Wait until the queue has no consumer: only then are the deliveries of its last consumer requeued."""
    deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT
    while (await _state(connection, queue)).consumers:
        if asyncio.get_running_loop().time() > deadline:
            raise QueueInUse(
                f"Another consumer uses {queue}: stop it first, or the messages lose their order"
            )
        await asyncio.sleep(POLL_INTERVAL)


async def depth(connection: Connection, queue: str) -> int:
    """The queue's ready messages. Raises TopologyError or BrokerUnreachable."""
    return (await _state(connection, queue)).ready


async def _state(connection: Connection, queue: str) -> QueueState:
    """As `look`, but zeros are true: Basic.Get waits for the queue's leader, so it distinguishes an empty
    queue from a silent leader."""
    deadline = asyncio.get_running_loop().time() + WAIT_TIMEOUT
    while True:
        state = await look(connection, queue)
        if any(state) or await _is_empty(connection, queue):
            return state
        if asyncio.get_running_loop().time() > deadline:
            raise BrokerUnreachable(f"The leader of {queue} does not answer: try again later")


async def _is_empty(connection: Connection, queue: str) -> bool:
    """Whether Basic.Get returns no message. A message is back in its position when this returns, because the
    queue has no other consumer."""
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
    """Browses a queue on a channel of its own. Everything that was not removed is back in its position when
    the context ends. Raises TopologyError or BrokerUnreachable, also at the end: then it is unknown whether
    the removed messages are gone. A body larger than `max_body_bytes` is not kept (`Delivery.oversize`)."""

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
        self._max_body_bytes = -1  # keep no body that arrives from now on
        self._connection.wire.resume_reading()
        try:
            if self._has_removed:
                with broker_errors(LOST):
                    async with asyncio.timeout(RPC_TIMEOUT):
                        await self._until_removed()
        except WorkerError:
            if error is None:
                raise BrokerUnreachable(
                    "The connection to RabbitMQ was lost at the end: the last removed messages may be back"
                ) from None
        finally:
            with contextlib.suppress(WorkerError), broker_errors(LOST):
                async with asyncio.timeout(RPC_TIMEOUT):
                    await self._channel.close()
                    await _until_unused(self._connection, self._queue)  # then the rest is requeued

    def look(self, count: int) -> Deliveries:
        """The oldest `count` messages in their order; fewer if the queue has fewer."""
        return self._read(count, [min(LARGEST_PREFETCH, self.window << number) for number in range(WINDOWS)])

    def take(self, count: int, held: int) -> Deliveries:
        """As `look`, for a caller that removes all but `held` messages meanwhile. It uses one consumer,
        because with two, removals would mix their deliveries. Its prefetch covers all messages if it can,
        because a requeued message goes behind those that were read before."""
        return self._read(count, [min(LARGEST_PREFETCH, max(count, held) + TAKE_WINDOW)])

    async def _read(self, count: int, prefetches: list[int]) -> Deliveries:
        """Read with one consumer after the other, which have these prefetches."""
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
        """Remove a message that was read from the queue for good."""
        with broker_errors(LOST):
            await self._channel.basic_ack(delivery.tag)
        self._credit += 1
        self._has_removed = True

    def check(self) -> None:
        """Raise BrokerUnreachable if the broker has requeued the deliveries."""
        if not self._channel.is_closed:
            return
        closing = self._channel.closing
        reason = None if closing.cancelled() else closing.exception()
        if isinstance(reason, aiormq.exceptions.ConnectionInternalError):
            raise BrokerUnreachable(
                f"Message {self._seen + 1} of {self._queue} and those behind it cannot be read: "
                f"{Cause.UNDELIVERABLE}. An AMQP 1.0 client can remove it"
            )
        raise BrokerUnreachable("The connection to RabbitMQ was lost: run the command again")

    async def _until_removed(self) -> None:
        """Wait until the queue has processed every acknowledgement. The broker's channel holds some of them
        back until the queue has processed the first ones, and drops them if it is closed meanwhile.

        All are processed when the queue has delivered a message for each of them. If it has nothing left to
        deliver, a new consumer proves the same: that command goes through the queue behind the
        acknowledgements. Its priority is lower, so it receives no message."""
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
            # The first deliveries can end the connection before it answers. `check` then raises the cause.

    def _take(self, method: bytes, properties: Properties, body: bytes, dropped: int) -> None:
        self._credit -= 1
        self._arrived.append(delivery_of(method, properties, body, dropped))
        self._arrived_bytes += len(body)
        if self._arrived_bytes > HELD_BYTES:
            self._connection.wire.pause_reading()
        self._news.set()

    async def _more(self) -> bool:
        """Wait for a delivery; False if the queue has no more."""
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
