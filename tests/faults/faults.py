"""The faults, each as one strike: done at some moment under load, and healed when it returns.

A strike returns the time (seconds since the epoch) from which recovery counts, if that is not its own end.
"""

import asyncio
import inspect
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

from tests.faults.load import wait_for
from tests.faults.stops import POINTS
from tests.faults.workers import Stop, Worker
from tests.faults.world import POISON, Fault, Strike, World, wait_for_letter
from tests.sandbox_faults import Half, Hang, Latency, Reset, ShortToken, Status
from worker.broker.status import publish_order
from worker.contract.status import Order
from worker.sandbox.faults import Fault as UpstreamFault
from worker.settings import load_settings

Act = Callable[[World], object]
HEARTBEAT = 2  # seconds; shortened, so that what takes half a minute takes a few seconds
QUICK_GATE = "worker.pipeline.flow.LONGEST_PROBE_WAIT=0.5"
QUICK = {"OTT_HTTP_TIMEOUT": "1", "FAULTS_CLOCKS": QUICK_GATE}
LIMITED = "limited"


FAULTS: dict[str, Fault] = {}


def _fault(name: str, strike: Strike, **needs: object) -> None:
    FAULTS[name] = Fault(name, strike, **needs)


async def _do(act: Act, world: World) -> None:
    done = act(world)
    if inspect.isawaitable(done):
        await done


def _once(act: Act) -> Strike:
    return lambda world: _do(act, world)


def _lasting(begin: Act, end: Act, seconds: tuple[float, float] = (0.5, 2.0)) -> Strike:
    """Begun, and ended at a random moment after so many seconds."""

    async def strike(world: World) -> None:
        await _do(begin, world)
        await asyncio.sleep(world.rng.uniform(*seconds))
        await _do(end, world)

    return strike


async def active(world: World, timeout: float = 30.0) -> Worker:
    """The active worker; where all is answered and none has become active, any."""
    await wait_for(lambda: world.workers.active or not world.load.unanswered(), "an active worker", timeout)
    return world.workers.active or world.workers.running[0]


# --- worker ---


async def _standby(world: World) -> None:
    """Wait until the replacement of the last one that was killed stands by."""
    await wait_for(
        lambda: sum(bool(w.told("subscribed")) for w in world.workers.running) >= world.workers.keep,
        "a standby",
    )


async def _kill(world: World) -> None:
    worker = await active(world)
    await _standby(world)
    worker.kill()


@asynccontextmanager
async def _doomed(world: World) -> AsyncIterator[None]:
    """Every worker stops itself at some await of the journey."""
    points = sorted(POINTS)
    world.workers.stop = lambda: Stop(world.rng.choice(points), world.rng.randrange(1, 1000))
    yield


async def _stop_at_an_await(world: World) -> None:
    stopped = world.workers.stopped
    await wait_for(lambda: world.workers.stopped > stopped or not world.load.unanswered(), "a stop", 60)


@asynccontextmanager
async def few_deliveries(world: World) -> AsyncIterator[None]:
    """The broker gives a message up after so many deliveries that nearly all which share a crash with one
    that ends every worker get through before: what came back three times is made alone, by chance."""
    await world.deliver_at_most(22)
    try:
        yield
    finally:
        await world.no_limits()


async def _crash_loop(world: World) -> None:
    """Publish a request that ends every worker which forwards it; wait until the broker gives it up."""
    culprit = world.culprit()
    await world.load.publish([culprit])
    await wait_for_letter(world, culprit.id, 120)


def _ended_by(number: signal.Signals) -> Strike:
    async def strike(world: World) -> float:
        worker = await active(world)
        await _standby(world)
        worker.interrupt(number)
        told_at = time.time()
        await wait_for(lambda: not worker.runs, "its end", 30)
        return told_at

    return strike


async def _freeze(world: World) -> None:
    """Freeze the active worker until another one has taken over, and wake it up."""
    zombie = await active(world)
    zombie.freeze()
    frozen_at = time.time()
    others = [worker for worker in world.workers.running if worker is not zombie]
    await wait_for(
        lambda: any(worker.is_active for worker in others) or not world.load.unanswered(),
        "a standby that takes over",
        60,
    )
    await world.load.reply_after(frozen_at + 0.5)
    zombie.thaw()


_fault("kill -9", _kill)
_fault("kill -9 at an await", _stop_at_an_await, workers=3, around=_doomed)
_fault("SIGTERM", _ended_by(signal.SIGTERM))
_fault("SIGINT", _ended_by(signal.SIGINT))
_fault("frozen past the heartbeat", _freeze, heartbeat=HEARTBEAT)
_fault("take-over again and again", _kill, workers=3)
_fault(
    "crash loop on one message",
    _crash_loop,
    own_node=True,
    workers=3,
    around=few_deliveries,
    environment={"FAULTS_POISON": POISON},
    slow=True,
)


# --- partitions ---

PARTITIONED = {"OTT_PARTITIONS": "8"}


async def _others(world: World, than: Worker) -> list[Worker]:
    """Those that have had a partition, besides this one; where all is answered and none has, all others."""

    def taken() -> list[Worker]:
        return [w for w in world.workers.running if w is not than and w.told("partition_taken")]

    await wait_for(lambda: taken() or not world.load.unanswered(), "a worker with a partition")
    return taken() or [worker for worker in world.workers.running if worker is not than]


async def _kill_partitions_worker(world: World) -> Worker:
    router = await active(world)
    await _standby(world)
    world.rng.choice(await _others(world, router)).kill()
    return router


async def _kill_both(world: World) -> None:
    (await _kill_partitions_worker(world)).kill()


async def _join_and_leave(world: World) -> None:
    """A worker more for a moment, and then one that has worked for long goes."""
    await world.workers.start()
    await asyncio.sleep(world.rng.uniform(0.2, 1.5))
    world.workers.running[0].interrupt()


async def _storm(world: World) -> None:
    """Calls that take longer than a delivery may be held, a pause, a worker more, one that goes, one that is
    killed, all at random moments: 4.3 stopped for good in this, when consumers had priorities."""
    settings = load_settings(amqp_url=world.url, prefix=world.prefix)

    async def pause() -> None:
        await publish_order(settings, Order.now("pause", "a storm", by="campaign"))
        await asyncio.sleep(world.rng.uniform(0.5, 1.5))
        await publish_order(settings, Order.now("resume", "a storm", by="campaign"))

    async def leave() -> None:
        world.rng.choice(world.workers.running).interrupt()

    async def die() -> None:
        world.rng.choice(world.workers.running).kill()

    slow = Latency(path="registration", seconds=1.0, up_to=3.0, count=60)
    world.sandbox.faults.add(slow)
    await asyncio.sleep(2.5)
    acts: list[Callable[[], Awaitable[object]]] = [pause, world.workers.start, leave, die]
    world.rng.shuffle(acts)
    for act in acts:
        await act()
        await asyncio.sleep(world.rng.uniform(0.1, 1.0))
    world.calm()


async def _change_the_number(world: World) -> None:
    """Every worker is restarted with another number of partitions, one after the other."""
    number = world.rng.choice([2, 4, 8])
    world.workers.environment["OTT_PARTITIONS"] = str(number)
    for worker in list(world.workers.running):
        started = len(world.workers.all)
        worker.interrupt()
        await wait_for(lambda worker=worker: not worker.runs, "its end", 30)
        await wait_for(lambda started=started: len(world.workers.all) > started, "a replacement", 30)
        await _standby(world)


def _partitioned(name: str, strike: Strike, **needs: object) -> None:
    _fault(name, strike, **{"workers": 3, "environment": PARTITIONED, **needs})


_partitioned("partitions: kill -9 of the router", _kill)
_partitioned("partitions: kill -9 of a partition's worker", _once(_kill_partitions_worker))
_partitioned("partitions: kill -9 of both", _kill_both)
_partitioned("partitions: join and leave", _join_and_leave)
_partitioned("partitions: storm", _storm, slow=True, environment={**PARTITIONED, "OTT_HOLD_LIMIT": "2"})
_partitioned("partitions: change of number", _change_the_number, slow=True)
_partitioned("partitions: frozen router", _freeze, heartbeat=HEARTBEAT)


# --- broker ---


async def _restart(world: World) -> None:
    await world.node.stop()
    await world.node.start()


async def _kill_broker(world: World) -> None:
    await world.node.kill()
    await world.node.start()


def _set_memory(share: str) -> Act:
    return lambda world: world.node.ctl("set_vm_memory_high_watermark", share)


def _slow_down(world: World) -> None:
    world.proxy.latency = 0.02


async def _delete_requests(world: World) -> float:
    """Delete the queue. What was in it is gone by the operator's own hand."""
    await world.node.ctl("delete_queue", f"{world.prefix}.requests")
    now = time.time()
    world.load.given_up |= {request.id for request in world.load.unanswered()}
    return now


async def _delete_reply_queue(world: World) -> float:
    """Later replies go to PREFIX.replies, until the queue is there again. Replies that it held and nobody had
    read are gone with it, by the operator's own hand."""
    await world.delete_reply_queue()
    now = time.time()
    settled = {call.resource_id for call in world.sandbox.history if call.finished_at}
    world.load.may_miss |= {
        s.id for s in world.load.unanswered() if s.resource is None or s.resource in settled
    }
    return now


def _ask_for_replies_nowhere(world: World) -> None:
    world.load.elsewhere = f"{world.prefix}.nowhere"


def _ask_for_replies_again(world: World) -> None:
    world.load.elsewhere = None


@asynccontextmanager
async def limited_user(world: World) -> AsyncIterator[None]:
    """The workers' user, who may do all until `forbid_replies`."""
    await world.node.ctl("add_user", LIMITED, LIMITED)
    try:
        await allow_replies(world)
        yield
    finally:
        await world.node.ctl("delete_user", LIMITED)


async def allow_replies(world: World) -> None:
    await world.node.ctl("set_permissions", LIMITED, ".*", ".*", ".*")


async def forbid_replies(world: World) -> None:
    """Take the right to publish to named queues away; the broker looks at it for new channels."""
    await world.node.ctl("set_permissions", LIMITED, ".*", r"^(?!amq\.default$).*", ".*")


async def _forbid_and_cut(world: World) -> None:
    await forbid_replies(world)
    world.proxy.cut()


@asynccontextmanager
async def short_consumer_timeout(world: World) -> AsyncIterator[None]:
    """A second and a half, for half an hour."""
    await world.node.evaluate("application:set_env(rabbit, consumer_timeout, 1500).")
    await world.node.evaluate("application:set_env(rabbit, channel_tick_interval, 500).")
    try:
        yield
    finally:
        await world.node.evaluate("application:set_env(rabbit, consumer_timeout, 1800000).")
        await world.node.evaluate("application:set_env(rabbit, channel_tick_interval, 60000).")


def _answer_503(world: World) -> None:
    world.sandbox.faults.add(Status(path="registration", status=503))


async def _fill_replies(world: World) -> None:
    await world.limit("test-replies", 1)
    await world.limit("replies", 1)


_fault("broker restart", _restart, own_node=True)
_fault("broker kill -9", _kill_broker, own_node=True)
_partitioned("partitions: broker restart", _restart, own_node=True)
_fault("TCP reset", _once(lambda world: world.proxy.reset()))
_fault("connection closed", _once(lambda world: world.proxy.cut()))
_fault("half-closed connection", _once(lambda world: world.proxy.half_close()), heartbeat=HEARTBEAT)
# Long enough that the broker gives the connections up, at some of the times.
_black_hole = _lasting(lambda world: world.proxy.black_hole(), World.heal, (0.5, 3.5 * HEARTBEAT))
_fault("black hole", _black_hole, heartbeat=HEARTBEAT)
_fault("slow link", _lasting(_slow_down, World.heal, (0.5, 3)))
_fault(
    "memory alarm (blocked)", _lasting(_set_memory("0.00001"), _set_memory("0.6"), (0.5, 3)), own_node=True
)
_fault("requests queue deleted", _delete_requests, own_node=True)
_fault("reply queue missing", _lasting(_ask_for_replies_nowhere, _ask_for_replies_again))
_fault("reply queue deleted", _delete_reply_queue)
_fault("reply queue full", _lasting(_fill_replies, World.no_limits), own_node=True)
_fault("dead queue full", _lasting(lambda world: world.limit("dead", 1), World.no_limits), own_node=True)
_fault(
    "no permission for the reply queue",
    _lasting(_forbid_and_cut, allow_replies),
    own_node=True,
    user=LIMITED,
    around=limited_user,
)
_fault(
    "consumer timeout",
    # Deliveries are held for longer than that. From RabbitMQ 4.3 on, what the worker asks for counts instead.
    _lasting(_answer_503, World.calm, (6, 6)),
    own_node=True,
    around=short_consumer_timeout,
    environment={"FAULTS_CLOCKS": QUICK_GATE},
)


# --- Marketing Cloud ---


def _upstream(name: str, fault: UpstreamFault, **more: str) -> None:
    """A fault of the sandbox that lasts for a while, or until its `count` is used up."""
    strike = _lasting(lambda world: world.sandbox.faults.add(fault), World.calm)
    _fault(name, strike, environment={**QUICK, **more})


def _registration(status: int, **more: object) -> UpstreamFault:
    return Status(path="registration", status=status, **more)


_upstream("500 storm", _registration(500))
_upstream("502 storm", _registration(502))
_upstream("503 storm", _registration(503))
_upstream(
    "web page with 200", _registration(200, body="<html>We are back soon</html>", content_type="text/html")
)
_upstream("429, Retry-After in seconds", _registration(429, retry_after=1, count=3))
_upstream(
    "429, Retry-After as a date",
    _registration(429, retry_after=formatdate(2_000_000_000, usegmt=True), count=1),
    OTT_RETRY_BUDGET="4",  # seconds; no wait is longer than what is left of it
)
_upstream("429, absurd Retry-After", _registration(429, retry_after=10**12, count=3), OTT_RETRY_BUDGET="4")
_upstream("429, negative Retry-After", _registration(429, retry_after=-5))
_upstream(
    "429/50200",
    _registration(429, errorcode=50200, count=1),
    FAULTS_CLOCKS=f"{QUICK_GATE},worker.pipeline.policy.BLOCKED_PAUSE=1",
)
_upstream("hang", Hang(path="registration"))
_upstream("reset after the request was sent", Reset(path="registration", applied=True))
_upstream("half a response", Half(path="registration"))
_upstream("huge answer", Status(path="registration", status=500, body="<" * 20_000_000, rate=0.05))
_upstream("answer that is not JSON", _registration(503, body="<\xff", content_type="application/json"))
_upstream("redirect", _registration(307, location="/ott/v1/registration"))
_upstream("401 loop", _registration(401))
_fault("tokens revoked mid-batch", _once(lambda world: world.sandbox.revoke_tokens()))


def _token(name: str, fault: UpstreamFault) -> None:
    def begin(world: World) -> None:
        world.sandbox.faults.add(fault)
        world.sandbox.revoke_tokens()

    _fault(name, _lasting(begin, World.calm), environment=QUICK)


_token("tokens that end early", ShortToken(path="token", seconds=0.2))
_token("token endpoint down", Status(path="token", status=503))
_token("token endpoint hanging", Hang(path="token"))
_token("token endpoint refusing", Status(path="token", status=401))


def _behind_tls(name: str, begin: Act, end: Act) -> None:
    _fault(name, _lasting(begin, end), behind_tls=True, environment=QUICK)


_behind_tls(
    "wrong certificate",
    lambda world: world.front.present(world.front.strange),
    lambda world: world.front.present(world.front.right),
)
_behind_tls("DNS failure", lambda world: world.front.lose_names(), lambda world: world.front.find_names())
