"""The systems that send requests: they publish until confirmed, in order for each resource, and read
replies."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Self

import aio_pika
from yarl import URL

from tests.rig import LINE, MESSENGER
from worker.amqp.causes import is_cancelled
from worker.contract.platforms import SECRET_FIELDS
from worker.contract.words import AS_OF_HEADER

IN_FLIGHT = 100  # publishes
CONFIRM_TIMEOUT = 15.0  # seconds; then it is unknown, and published again
CONNECT_TIMEOUT = 5.0  # seconds
HEARTBEAT = 5  # seconds
QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}


@contextlib.contextmanager
def unless_lost() -> Iterator[None]:
    """Go on where a connection was lost. aiormq has many words for that: StopAsyncIteration, a bare Exception
    and even CancelledError are among them."""
    try:
        yield
    except asyncio.CancelledError:
        if is_cancelled():
            raise
    except Exception:
        pass


@dataclass(eq=False)
class Sent:
    """One request. `version` counts the requests of its resource; None in an invalid one."""

    id: str
    body: bytes
    resource: str | None
    version: int | None
    confirmed: bool = False
    publishes: int = 0
    sent_at: float = 0.0  # seconds since the epoch
    is_dated: bool = False

    @property
    def is_valid(self) -> bool:
        return self.version is not None


@dataclass(frozen=True)
class Reply:
    """One reply message as it was read."""

    request_id: str
    message_id: str
    at: float  # seconds since the epoch, when it was read
    received_at: str  # the worker's own word: in the order of the queue
    completed_at: float  # the worker's own word for when
    status: str
    attempts: int
    raw: bytes
    headers: str


def canaries(seed: int) -> dict[str, str]:
    """A value for each secret field that stands nowhere else."""
    return {name: f"canary-{name}-{seed:08x}" for name in SECRET_FIELDS}


def plan(
    count: int, resources: int, rng: random.Random, versions: dict[str, int], *, invalid: float = 0.03
) -> list[Sent]:
    """`count` requests over so many pages and channels, some of them invalid, in a random order. `versions`
    holds the newest one of each resource."""
    secrets = canaries(rng.randrange(2**32))
    requests = []
    for number in range(count):
        resource = str(10**9 + rng.randrange(resources))
        request_id = f"r{number:06d}-{rng.randrange(2**32):08x}"
        if rng.random() < invalid:
            requests.append(Sent(request_id, _body(resource, 0, secrets, endpointUrl=""), None, None))
            continue
        version = versions[resource] = versions.get(resource, 0) + 1
        requests.append(Sent(request_id, _body(resource, version, secrets), resource, version))
    return requests


def request(request_id: str, resource: str, rng: random.Random) -> Sent:
    """One request, the first of its resource."""
    return Sent(request_id, _body(resource, 1, canaries(rng.randrange(2**32))), resource, 1)


def old_body(resource: str) -> bytes:
    """A registration older than the first version."""
    return _body(resource, 0, {})


def _body(resource: str, version: int, secrets: dict[str, str], **more: Any) -> bytes:
    line = int(resource) % 2
    example, kind = (LINE, "channel") if line else (MESSENGER, "page")
    attributes = dict(example["ottPlatformAttributes"])
    attributes |= {name: secrets[name] for name in attributes if name in secrets}
    attributes |= {f"{kind}Id": resource, f"{kind}Name": f"version {version}", **more}
    return json.dumps({**example, "ottPlatformAttributes": attributes}).encode()


def version_of(body: dict[str, Any] | None) -> int:
    """The version that a registration's body carries."""
    attributes = (body or {}).get("ottPlatformAttributes", {})
    name = attributes.get("pageName") or attributes.get("channelName") or "version -1"
    return int(str(name).removeprefix("version "))


@dataclass(eq=False)
class Load:
    """Publishes to one prefix and reads the replies, reconnecting for as long as its context lasts."""

    url: str  # several addresses, separated by commas, are taken in turn
    prefix: str
    elsewhere: str | None = None  # where replies are wanted instead of in `reply_queue`
    dates_half: bool = False  # give the requests of every other pair of resources `x-ott-as-of`
    sent: list[Sent] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)  # requests that a fault took away or dead-lettered
    may_miss: set[str] = field(default_factory=set)  # requests whose reply a fault may have taken away
    _tails: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    _turns: Iterator[int] = field(default_factory=count)
    _connection: aio_pika.abc.AbstractConnection | None = None
    _channel: aio_pika.abc.AbstractChannel | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _reader: "asyncio.Task[None] | None" = None

    @property
    def reply_queue(self) -> str:
        return f"{self.prefix}.test-replies"

    async def __aenter__(self) -> Self:
        await self._open()
        self._reader = asyncio.create_task(self._read_replies())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._connection is not None:
            with unless_lost():
                await self._connection.close()

    async def publish(
        self, requests: Sequence[Sent], rate: float | None = None, reply_to: str | None = None
    ) -> None:
        """Publish all, `rate` a second, and return when each is confirmed."""
        gate, tasks, started = asyncio.Semaphore(IN_FLIGHT), [], time.monotonic()
        for number, request in enumerate(requests):
            if rate:
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            await gate.acquire()
            request.sent_at = time.time()
            request.is_dated = self.dates_half and int(request.resource or 0) % 4 > 1
            self.sent.append(request)
            before = self._tails.get(request.resource or "")
            task = asyncio.create_task(self._publish_after(before, request, reply_to))
            task.add_done_callback(lambda _: gate.release())
            if request.resource:
                self._tails[request.resource] = task
            tasks.append(task)
        await asyncio.gather(*tasks)

    def forget(self) -> None:
        """Begin anew; late replies to earlier requests count as unexpected."""
        self.sent.clear()
        self.replies.clear()
        self.answered.clear()
        self.given_up.clear()
        self.may_miss.clear()
        self._tails.clear()

    def unanswered(self) -> list[Sent]:
        """Confirmed requests without a reply so far, other than those that a fault took away."""
        done = self.answered | self.given_up | self.may_miss
        return [request for request in self.sent if request.confirmed and request.id not in done]

    async def reply_after(self, moment: float, timeout: float = 60.0) -> float | None:
        """Wait for a reply that was made after `moment`; the seconds from then until it was read. None where
        all that was sent is answered, confirmed or not."""

        def first() -> Reply | None:
            return next((reply for reply in self.replies if reply.completed_at > moment), None)

        def all_answered() -> bool:
            done = self.answered | self.given_up | self.may_miss
            return all(request.id in done for request in self.sent)

        await wait_for(lambda: first() or all_answered(), "a reply", timeout)
        reply = first()
        return reply.at - moment if reply is not None else None

    def silence(self, since: float, until: float) -> float:
        """The longest time between these moments in which a request waited and none was answered, seconds."""
        sent_at = {request.id: request.sent_at for request in self.sent}
        longest, last = 0.0, since
        for reply in sorted(self.replies, key=lambda reply: reply.completed_at):
            waits_since = sent_at.pop(reply.request_id, None)  # a repeated reply ends no silence
            if waits_since is not None and since < reply.completed_at < until:
                longest = max(longest, reply.completed_at - max(last, waits_since))
                last = reply.completed_at
        return longest

    async def _publish_after(
        self, before: "asyncio.Task[None] | None", request: Sent, reply_to: str | None
    ) -> None:
        if before is not None:
            await before
        as_of = datetime.fromtimestamp(request.sent_at, UTC).isoformat()
        message = aio_pika.Message(
            request.body,
            headers={AS_OF_HEADER: as_of} if request.is_dated else {},
            message_id=request.id,
            correlation_id=request.id,
            reply_to=reply_to or self.elsewhere or self.reply_queue,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        while not request.confirmed:
            connection = self._connection
            with unless_lost():
                channel = await self._open()
                connection = self._connection
                request.publishes += 1
                async with asyncio.timeout(CONFIRM_TIMEOUT):
                    await channel.default_exchange.publish(message, f"{self.prefix}.requests")
                request.confirmed = True
            if not request.confirmed:
                await asyncio.sleep(0.1)
                await self._lose(failed=connection)

    async def _lose(self, failed: aio_pika.abc.AbstractConnection | None) -> None:
        """Give a connection up on which something failed; it may not know that it is dead."""
        if failed is not None and failed is self._connection:
            self._connection = self._channel = None
            with unless_lost():
                await failed.close()

    async def _open(self) -> aio_pika.abc.AbstractChannel:
        async with self._lock, asyncio.timeout(CONFIRM_TIMEOUT):
            lost = self._connection is None or self._connection.is_closed
            if lost or self._channel is None or self._channel.is_closed:
                if lost:
                    self._connection = await self.connect()
                assert self._connection is not None
                self._channel = await self._connection.channel(on_return_raises=True)
                await self._channel.declare_queue(self.reply_queue, durable=True, arguments=QUORUM)
            return self._channel

    async def connect(self) -> aio_pika.abc.AbstractConnection:
        """To the next address."""
        urls = self.url.split(",")
        url = URL(urls[next(self._turns) % len(urls)]).update_query(heartbeat=HEARTBEAT)
        return await aio_pika.connect(url, timeout=CONNECT_TIMEOUT)

    async def _read_replies(self) -> None:
        await asyncio.gather(self._read(self.reply_queue, declare=True), self._read(f"{self.prefix}.replies"))

    async def _read(self, name: str, *, declare: bool = False) -> None:
        """Consume one queue, again and again; one that the worker declares may be missing for a while."""
        while True:
            with unless_lost():
                connection = await self.connect()
                async with connection:
                    channel = await connection.channel()
                    await channel.set_qos(1000)
                    queue = await channel.get_queue(name, ensure=False)
                    if declare:
                        queue = await channel.declare_queue(name, durable=True, arguments=QUORUM)
                    ended = asyncio.Event()
                    for closing in (channel, connection):
                        closing.close_callbacks.add(lambda *_, ended=ended: ended.set())
                    await queue.consume(self._take)
                    await ended.wait()
            await asyncio.sleep(0.2)

    async def _take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        document = json.loads(message.body)
        reply = Reply(
            request_id=document["requestId"],
            message_id=message.message_id or "",
            at=time.time(),
            received_at=document["receivedAt"],
            completed_at=datetime.fromisoformat(document["completedAt"]).timestamp(),
            status=document["status"],
            attempts=document["attempts"],
            raw=message.body,
            headers=repr(message.headers) + repr(message.properties),
        )
        self.replies.append(reply)
        self.answered.add(reply.request_id)
        await message.ack()


async def wait_for(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> None:
    """Wait until the condition holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout:g} s"
        await asyncio.sleep(0.02)
