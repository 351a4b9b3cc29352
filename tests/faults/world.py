"""What a fault needs around it: broker, proxy, sandbox, workers, load, and the checker at the end."""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Self

import aio_pika
from yarl import URL

from tests.faults.checker import DeadLetter, Evidence, Findings, check
from tests.faults.front import Front
from tests.faults.load import Load, Sent, plan, request, version_of, wait_for
from tests.faults.node import Node
from tests.faults.proxy import Proxy
from tests.faults.wiretap import Wiretap
from tests.faults.workers import Workers
from tests.rig import delete_objects
from tests.sandbox_faults import Latency
from worker.sandbox import Sandbox

POISON = "poison"  # what the ids of requests begin with that end a worker, where it is told so
CLIENT_SECRET = "canary-client-secret-5d1c"
PREFETCH = 50
ATTEMPTS = 6
DRAIN_WITHIN = 60.0  # seconds after healing
ENVIRONMENT = {
    "OTT_MC_CLIENT_ID": "sandbox",
    "OTT_MC_CLIENT_SECRET": CLIENT_SECRET,
    "OTT_PREFETCH": str(PREFETCH),
    "OTT_RETRY_ATTEMPTS": str(ATTEMPTS),
    "OTT_RETRY_BASE": "0.05",
    "OTT_HTTP_TIMEOUT": "5",
    "OTT_SHUTDOWN_GRACE": "5",
    "OTT_ADMIN_PORT": "0",
    "OTT_LOG_FORMAT": "json",
}


@dataclass(eq=False)
class World:
    """One deployment under test, as long as its context lasts. Workers reach the broker through `proxy`."""

    url: str
    prefix: str
    folder: Path
    _: KW_ONLY
    node: Node | None = None  # which this world may kill
    seed: int = 0
    heartbeat: int | None = None
    user: str | None = None
    behind_tls: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    strikes: int = field(default=0, init=False)
    recoveries: list[float] = field(default_factory=list, init=False)
    letters: list[DeadLetter] = field(default_factory=list, init=False)
    sandbox_host = "127.0.0.1"

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._partitions = int(self.environment.get("OTT_PARTITIONS", "0"))
        self._stack = AsyncExitStack()
        self._limits: list[str] = []
        self._versions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        self.sandbox = await enter(
            Sandbox(client_id="sandbox", client_secret=CLIENT_SECRET, host=self.sandbox_host, port=0)
        )
        self.wiretap = Wiretap(self.prefix)
        broker = await self._way_to_the_broker()
        self.load = Load(self.url, self.prefix)
        self._stack.push_async_callback(delete_objects, self.url.split(",")[0], self.prefix)
        self._stack.push_async_callback(self.delete_reply_queue)
        await enter(self.load)
        way = dict.fromkeys(("OTT_MC_AUTH_URL", "OTT_MC_REST_URL"), self.sandbox.url)
        if self.behind_tls:
            self.front = await enter(Front(URL(self.sandbox.url).port or 0, self.folder))
            way = self.front.environment
        names = {"OTT_AMQP_URL": broker, "OTT_PREFIX": self.prefix}
        environment = {**ENVIRONMENT, **names, **way, **self.environment}
        self.workers = Workers(self.folder, environment, self.enter_host)
        self._stack.push_async_callback(self.workers.end)
        self.calm()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.heal()
        await self._stack.aclose()

    def enter_host(self, worker: int) -> Sequence[str]:
        """What the command of a worker begins with."""
        return ()

    async def heal(self) -> None:
        """End all faults of the wire."""
        self.proxy.heal()

    async def _way_to_the_broker(self) -> str:
        """Put a proxy that listens between workers and broker; the workers' URL."""
        self.proxy = await self._stack.enter_async_context(Proxy.to(self.url, listen=self.wiretap.wire))
        url = URL(self.proxy.url)
        if self.user:
            url = url.with_user(self.user).with_password(self.user)
        return str(url.with_query({"heartbeat": self.heartbeat} if self.heartbeat else None))

    @property
    def injected(self) -> int:
        """How many faults there were: strikes, or workers that stopped themselves."""
        return max(self.strikes, self.workers.stopped)

    def fresh(self) -> None:
        """Begin another test with the same workers: forget what was done and seen."""
        self.load.forget()
        self.calm()
        self.sandbox.history.clear()
        self.sandbox.registrations.clear()
        self.strikes = 0
        self.recoveries = []
        self.letters.clear()
        self._versions.clear()

    def culprit(self) -> Sent:
        """A request that ends every worker which is told of `POISON`. It has a resource of its own, and gets
        no reply: the broker gives it up."""
        number = self.rng.randrange(10**9)
        culprit = request(f"{POISON}-{number}", str(2 * 10**9 + number), self.rng)
        self.load.given_up.add(culprit.id)
        return culprit

    def plan(self, count: int, resources: int = 20, invalid: float = 0.03) -> list[Sent]:
        return plan(count, resources, self.rng, self._versions, invalid=invalid)

    def calm(self) -> None:
        """End all faults of Marketing Cloud. It takes its time all the same, so that the next fault finds
        calls on their way."""
        self.sandbox.heal()
        self.sandbox.faults.add(Latency(seconds=0.01, up_to=0.03))

    async def start(self, workers: int) -> None:
        """Start so many workers, and replace each that ends."""
        await asyncio.gather(*(self.workers.start() for _ in range(workers)))
        self.workers.keep = workers

    def struck(self) -> None:
        """A fault begins."""
        self.strikes += 1

    async def recovered(self, healed_at: float, timeout: float = 60.0) -> float | None:
        """A fault was over at `healed_at`: wait for the first reply made since, and note how long it took."""
        seconds = await self.load.reply_after(healed_at, timeout)
        if seconds is not None:
            self.recoveries.append(seconds)
        return seconds

    async def drained(self, within: float = DRAIN_WITHIN) -> None:
        """Wait until every confirmed request is answered, every refused one is dead-lettered too, and no
        delivery is left without an acknowledgement."""
        await wait_for(lambda: not self.load.unanswered(), "an answer to every request", within)
        excused = self.load.given_up | self.load.may_miss
        refused = [s for s in self.load.sent if not s.is_valid and s.confirmed and s.id not in excused]
        deadline = time.monotonic() + within
        while await self.depth("dead") + len(self.letters) < len(refused):
            assert time.monotonic() < deadline, "a dead letter for every refused request did not come about"
            await asyncio.sleep(0.1)
        await wait_for(lambda: not self.wiretap.unsettled, "the last acknowledgement", within)

    async def findings(self, *, last: bool = True) -> Findings:
        """Gather the evidence and check it; `last` ends the workers before that."""
        texts = [(f"the {path} page", page) for path, page in await self._pages()]
        if last:
            await self.workers.end()
            texts += [("the journal", record) for record in await self._journal()]
        dead = await self.dead_letters()
        texts += [("a log", worker.log.read_text(errors="replace")) for worker in self.workers.all]
        texts += [("a reply", reply.raw.decode() + reply.headers) for reply in self.load.replies]
        texts += [("a dead letter's header", letter.headers) for letter in dead]
        registered = {key.id: version_of(held.body) for key, held in self.sandbox.registrations.items()}
        given_up = [s for s in self.load.sent if s.id in self.load.given_up and s.resource]
        return check(
            Evidence(
                sent=self.load.sent,
                replies=self.load.replies,
                dead=dead,
                queued=await self._queued(),
                calls=self.sandbox.history.registration_calls,
                registered=registered,
                texts=texts,
                secrets=["canary-"],
                strikes=self.injected,
                too_early=self.wiretap.too_early,
                prefetch=PREFETCH * (self._partitions + 1 if self._partitions else 1),
                attempts=ATTEMPTS,
                peak_memory=max((worker.peak_memory for worker in self.workers.all), default=0),
                peak_files=max((worker.peak_files for worker in self.workers.all), default=0),
                given_up=frozenset(self.load.given_up),
                may_miss=frozenset(self.load.may_miss),
                unfinished=frozenset(s.resource for s in given_up if s.resource),
            )
        )

    async def intact(self, *, last: bool = False) -> Findings:
        """The findings, in which every promise must hold."""
        findings = await self.findings(last=last)
        assert not findings.broken, "\n".join(findings.broken[:20])
        return findings

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
        async with await aio_pika.connect(self.url.split(",")[0]) as connection:
            yield await connection.channel()

    async def depth(self, name: str) -> int:
        """Messages that are ready in PREFIX.name."""
        async with self._channel() as channel:
            queue = await channel.declare_queue(f"{self.prefix}.{name}", passive=True)
            return queue.declaration_result.message_count or 0

    async def _queued(self) -> int:
        """Requests that wait, in partitions too."""
        names = ["requests", *(f"requests.{number}" for number in range(1, self._partitions + 1))]
        return sum([await self.depth(name) for name in names])

    async def delete_reply_queue(self) -> None:
        """Delete the queue that requests name in reply_to."""
        async with self._channel() as channel:
            await channel.queue_delete(self.load.reply_queue)

    async def limit(self, name: str, messages: int) -> None:
        """Let PREFIX.name hold no more than so many messages."""
        await self._policy(name, {"max-length": messages, "overflow": "reject-publish"})

    async def deliver_at_most(self, times: int) -> None:
        """Let the broker dead-letter what is delivered more often."""
        await self._policy("requests", {"delivery-limit": times})

    async def _policy(self, name: str, definition: dict[str, object]) -> None:
        self._limits.append(f"limit-{name}")
        how = (self._limits[-1], f"^{re.escape(self.prefix)}[.]{name}$", json.dumps(definition))
        await self.node.ctl("set_policy", "--apply-to", "queues", *how)

    async def no_limits(self) -> None:
        """Undo `limit`."""
        while self._limits:
            await self.node.ctl("clear_policy", self._limits.pop())

    async def _pages(self) -> list[tuple[str, str]]:
        paths = [(worker, path) for worker in self.workers.running for path in ("/metrics", "/readyz")]
        pages = [(path, await worker.page(path)) for worker, path in paths]
        return [(path, page) for path, page in pages if page]

    async def dead_letters(self) -> list[DeadLetter]:
        """What the dead queue holds; it is taken out."""
        async with self._channel() as channel:
            queue = await channel.declare_queue(f"{self.prefix}.dead", passive=True)
            while message := await queue.get(fail=False, no_ack=True):
                self.letters.append(_letter(message))
        return self.letters

    async def _journal(self) -> list[str]:
        """Every record of the journal, line by line."""
        records: list[str] = []
        async with self._channel() as channel:
            await channel.set_qos(100)
            queue = await channel.declare_queue(f"{self.prefix}.journal", passive=True)
            quiet = time.monotonic()

            async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
                nonlocal quiet
                records.extend(message.body.decode().splitlines())
                quiet = time.monotonic()
                await message.ack()

            await queue.consume(take, arguments={"x-stream-offset": "first"})
            while time.monotonic() - quiet < 0.3:  # a stream has no end that it would tell of
                await asyncio.sleep(0.05)
        return records


Strike = Callable[[World], Awaitable[float | None]]


@dataclass(frozen=True)
class Fault:
    """One row of the table: what is done, and what it needs."""

    name: str
    strike: Strike
    own_node: bool = False
    workers: int = 2
    environment: Mapping[str, str] = field(default_factory=dict)
    heartbeat: int | None = None
    user: str | None = None  # the workers' own, who may lose permissions
    behind_tls: bool = False  # whether workers reach Marketing Cloud by TLS, under a host name
    around: Callable[[World], AbstractAsyncContextManager[None]] | None = None  # from before the first start
    slow: bool = False  # a strike takes so long that the campaign strikes less often


async def endure(world: World, fault: Fault, requests: int, strikes: int, rate: float | None = None) -> None:
    """Publish so many requests in as many parts as there are strikes, strike at a random moment of each
    part, and wait until everything is answered."""
    sizes = [requests // strikes] * (strikes - 1)
    sizes.append(requests - sum(sizes))
    for size in sizes:
        load = asyncio.create_task(world.load.publish(world.plan(size, max(20, requests // 50)), rate))
        try:
            moment = len(world.load.answered) + world.rng.randrange(1, max(2, size * 6 // 10))
            await wait_for(
                lambda moment=moment, load=load: len(world.load.answered) >= moment or load.done(),
                f"{moment} replies",
                300,
            )
            world.struck()
            began = await fault.strike(world)
            await world.recovered(time.time() if began is None else began)
            await load
        finally:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
    await world.drained()


def _letter(message: aio_pika.abc.AbstractIncomingMessage) -> DeadLetter:
    headers = message.headers
    reason = headers.get("x-ott-reason") or headers.get("x-first-death-reason")
    return DeadLetter(message.message_id or "", str(reason), repr(headers))


async def wait_for_letter(world: World, request_id: str, timeout: float = 60.0) -> None:
    """Wait until this request is among the dead letters; they are taken out."""
    deadline = time.monotonic() + timeout
    while request_id not in {letter.request_id for letter in await world.dead_letters()}:
        assert time.monotonic() < deadline, f"{request_id} did not become a dead letter"
        await asyncio.sleep(0.2)
