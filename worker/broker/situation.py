"""How a deployment is doing (contract §9), in the same words for `status`, `check`, `/readyz`, the console
and everybody who waits for a worker: what the broker knows of it, and what follows from that.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, Literal

from worker.amqp.connection import Connection
from worker.amqp.queue import look
from worker.amqp.stream_reader import StreamReader
from worker.broker.status import read_orders_by, read_workers_by
from worker.broker.topology import Topology
from worker.contract.status import Blocked, Order, Pause, WorkerStatus, standing_pause
from worker.contract.timestamps import how_long, span
from worker.errors import BrokerUnreachable, Problem, TopologyError

POLL_INTERVAL = 5.0  # seconds between looks at the depths of queues
BELIEVED_FOR = 30.0  # seconds; an older answer is no answer
REMEMBERED = timedelta(minutes=10)  # how long a worker that vanished without draining is listed
LONG_WAIT = 60  # seconds that the backlog takes; longer is told

Level = Literal["good", "notice", "warning", "bad"]


@dataclass(slots=True)
class Overview:
    """`queues` holds the messages that wait in `requests`, `replies` and `dead`, `consumers` how many take
    requests. `workers` are those that run; `lost` are those that fell silent without having stopped. `orders`
    are all that are kept, the oldest first. `problems` has a line for each thing that could not be read."""

    workers: list[WorkerStatus] = field(default_factory=list)
    lost: list[WorkerStatus] = field(default_factory=list)
    pause: Pause | None = None
    orders: list[Order] = field(default_factory=list)
    queues: dict[str, int] = field(default_factory=dict)
    consumers: int | None = None
    knows_workers: bool = False
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Workers, pause and queues as JSON."""
        return {
            "paused": self.pause and self.pause.model_dump(mode="json"),
            "workers": [worker.model_dump(mode="json", by_alias=True) for worker in self.workers],
            "lost": [worker.model_dump(mode="json", by_alias=True) for worker in self.lost],
            "queues": self.queues,
        }


async def read_overview(connection: Connection, names: Topology) -> Overview:
    """Read the overview. What this user may not read is left out and named in `problems`. Raises
    BrokerUnreachable."""
    found = Overview()
    for name in ("requests", "replies", "dead"):
        with _told(found):
            found.queues[name], consumers = await look(connection, getattr(names, name))
            if name == "requests":
                found.consumers = consumers
    found.knows_workers = True  # without the stream no worker has ever run
    try:
        now = datetime.now(UTC)
        for each in await read_workers_by(StreamReader(connection, names.status), REMEMBERED):
            if not each.is_silent(now):
                found.workers.append(each)
            elif each.state != "draining":
                found.lost.append(each)
    except TopologyError as error:
        found.knows_workers = error.problem is not Problem.FORBIDDEN
        found.problems.append(str(error))
    with _told(found):
        found.orders = await read_orders_by(StreamReader(connection, names.control))
        found.pause = standing_pause(found.orders)
    return found


@contextlib.contextmanager
def _told(found: Overview) -> Iterator[None]:
    try:
        yield
    except TopologyError as error:
        found.problems.append(str(error))


class QueueDepths:
    """Ready messages of the requests, replies and dead queues.

    It asks on the connection that `connection()` names at that time: the consuming one, because RabbitMQ goes
    on reading from it during an alarm. `run` it in a task; it never raises.
    """

    def __init__(self, topology: Topology, connection: Callable[[], Connection | None]) -> None:
        self._queues = {"requests": topology.requests, "replies": topology.replies, "dead": topology.dead}
        self._connection = connection
        self._answers: dict[str, tuple[int, float]] = {}

    def known(self) -> dict[str, int]:
        """Messages by `requests`, `replies` and `dead`; one without a recent answer is left out."""
        oldest = time.monotonic() - BELIEVED_FOR
        return {name: messages for name, (messages, at) in self._answers.items() if at > oldest}

    async def run(self) -> None:
        """Ask over and over, until cancelled."""
        while True:
            connection = self._connection()
            if connection is None:
                await asyncio.sleep(POLL_INTERVAL / 10)  # so that a new one is used at once
                continue
            for name, queue in self._queues.items():
                try:
                    self._answers[name] = (await look(connection, queue)).ready, time.monotonic()
                except TopologyError:
                    self._answers.pop(name, None)
                except BrokerUnreachable:
                    break
            await asyncio.sleep(POLL_INTERVAL)


class State(Enum):
    """The states, the most urgent first."""

    UNREACHABLE = "RabbitMQ cannot be reached"
    UNKNOWN = "Nothing is known yet"
    NO_WORKER = "No worker runs"
    NOT_CONSUMING = "No worker takes requests"
    PAUSED = "Paused"
    CREDENTIALS = "Credentials refused"
    OUTAGE = "Outage"
    BLOCKED = "Blocked"
    INCOMPLETE = "Not everything is known"
    PACE = "Speed limit"
    BACKLOG = "Backlog"
    DEAD_LETTERS = "Dead letters"
    WELL = "All is well"

    @property
    def level(self) -> Level:
        """How bad it is."""
        return _LEVELS.get(self, "bad")


_LEVELS: dict[State, Level] = {
    State.UNKNOWN: "warning",
    State.PAUSED: "warning",
    State.INCOMPLETE: "warning",
    State.PACE: "notice",
    State.BACKLOG: "notice",
    State.DEAD_LETTERS: "notice",
    State.WELL: "good",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One state with its cause, since when, and what to do next. `stops`: while it lasts, requests are not
    settled. `subject` follows the state's name: `by …`."""

    state: State
    cause: str
    advice: str
    since: datetime | None = None
    stops: bool = True
    subject: str = ""

    @property
    def headline(self) -> str:
        """The state, with its subject."""
        return f"{self.state.value} {self.subject}".rstrip()

    def line(self, now: datetime, style: Callable[[str], str] = str.upper) -> str:
        """The state, its cause and since when, in a line. `style` is that of the state's name."""
        ago = "" if self.since is None else f"{how_long(self.since, now)} ago ({self.since:%H:%M} UTC)"
        name, cause = style(self.state.value), self.cause.rstrip(".")
        if self.subject:
            return f"{name} {self.subject} {ago}".rstrip() + f": {cause}"
        return f"{name}: {cause}" + (f", {ago}" if ago else "")

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "state": self.state.name.lower(),
            "headline": self.headline,
            "cause": self.cause,
            "since": self.since and self.since.isoformat(),
            "advice": self.advice,
            "stops": self.stops,
        }


def judge(
    found: Overview,
    names: Topology,
    *,
    trouble: str = "",
    is_known: bool = True,
    dead: Mapping[str, int] = MappingProxyType({}),
) -> list[Condition]:
    """The conditions of a deployment, the most urgent first; State.WELL where there is none. `trouble` is why
    RabbitMQ could not be asked; `is_known` is False until it has answered. `dead` counts the dead letters
    by reason."""
    if trouble:
        advice = "Look at RabbitMQ and at OTT_AMQP_URL. Workers connect again by themselves."
        return [Condition(State.UNREACHABLE, trouble, advice)]
    if not is_known:
        return [Condition(State.UNKNOWN, "RabbitMQ is being asked", "This takes a moment.", stops=False)]
    conditions = [
        *_unknown(found),
        *_workers(found, names),
        *([] if found.pause is None else [_paused(found.pause)]),
        *(
            each
            for each in _of_workers(found.workers)
            if each.state is not State.PAUSED or found.pause is None
        ),
        *_backlog(found),
        *_dead_letters(found, dead),
    ]
    conditions.sort(key=_urgency)
    return conditions or [
        Condition(State.WELL, "requests are settled as they come", "Nothing to do.", stops=False)
    ]


def of_worker(worker: WorkerStatus) -> list[Condition]:
    """What keeps one worker from settling requests, or slows it down; the most urgent first."""
    conditions = [] if worker.paused is None else [_paused(worker.paused)]
    gate = worker.gate
    if gate.state == "closed" and gate.cause == "credentials":
        advice = (
            "It does not heal by itself: replace OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET, or what "
            "ott-worker check names."
        )
        cause = f"Marketing Cloud refuses this worker: {gate.why or 'no reason given'}"
        conditions.append(Condition(State.CREDENTIALS, cause, advice, gate.since))
    elif gate.state == "closed":
        cause = f"Marketing Cloud takes no calls: {gate.why or 'no reason given'}"
        advice = "Requests wait, none is lost, and all resumes by itself. If it lasts, run ott-worker check."
        conditions.append(Condition(State.OUTAGE, cause, advice, gate.since))
    elif gate.state == "opening":
        cause = f"Marketing Cloud answers again, and calls grow step by step: {gate.why or 'an outage ends'}"
        conditions.append(Condition(State.OUTAGE, cause, "Nothing to do.", gate.since, stops=False))
    conditions += [_blocked(each) for each in worker.blocked]
    return conditions


def obstacle(workers: Iterable[WorkerStatus]) -> str:
    """Why those who wait for the workers wait, in a sentence; empty where nothing is in the way."""
    conditions = [each for each in _of_workers(workers) if each.stops]
    if not conditions:
        return ""
    first = min(conditions, key=_urgency)
    name = f"The worker is {first.state.value.lower()} {first.subject}: " if first.subject else ""
    return f"{name}{first.cause.rstrip('.')}."


def _urgency(condition: Condition) -> int:
    return list(State).index(condition.state)


def _unknown(found: Overview) -> Iterator[Condition]:
    if found.problems:
        yield Condition(State.INCOMPLETE, "; ".join(found.problems), "See ott-worker check.", stops=False)


def _workers(found: Overview, names: Topology) -> Iterator[Condition]:
    if not found.knows_workers:
        return
    waiting = found.queues.get("requests", 0)
    wait = f"{waiting:,} requests wait" if waiting != 1 else "1 request waits"
    running = [worker for worker in found.workers if worker.state != "draining"]
    if not running:
        lost = f"; {found.lost[-1].place} fell silent: killed, or cut off from RabbitMQ" if found.lost else ""
        ending = "; those that run drain and end" if found.workers else ""
        advice = f"Start one with ott-worker run. If one runs, compare its OTT_PREFIX with {names.prefix}."
        since = found.lost[-1].at if found.lost and not found.workers else None
        yield Condition(State.NO_WORKER, f"{wait}{lost}{ending}", advice, since, stops=waiting > 0)
    elif found.pause is None and not any(worker.state == "active" for worker in running):
        takes = found.consumers if found.consumers is not None else 1
        if takes and not waiting:
            return
        which = ", ".join(worker.place for worker in running[:3])
        has = "has no consumer" if not takes else "is consumed by something else"
        cause = f"{which}: connected to RabbitMQ, but {names.requests} {has}, and {wait}"
        advice = "Look at the worker's log and /readyz; restart it if this lasts."
        yield Condition(State.NOT_CONSUMING, cause, advice, stops=waiting > 0)


def _of_workers(workers: Iterable[WorkerStatus]) -> Iterator[Condition]:
    """The conditions that workers report, each once. While a worker is active, those that only a standby
    reports do not count as stopping."""
    running = sorted(
        (worker for worker in workers if worker.state != "draining"), key=lambda each: each.state != "active"
    )
    seen: set[State | str] = set()
    for worker in running:
        is_idle = worker.state != "active" and running[0].state == "active"
        for condition in of_worker(worker):
            key = condition.subject if condition.state is State.BLOCKED else condition.state
            if key not in seen:
                seen.add(key)
                cause = f"{worker.place}, which stands by: {condition.cause}"
                yield replace(condition, stops=False, cause=cause) if is_idle else condition


def _paused(pause: Pause) -> Condition:
    advice = "Go on with: ott-worker resume"
    return Condition(
        State.PAUSED, pause.why or "no reason given", advice, pause.since, subject=f"by {pause.by}"
    )


_ROOM = {
    "replies": "Make room: have its replies consumed or deleted, or raise its max-length.",
    "dead": "Make room: replay or discard dead letters, or raise its max-length.",
}


def _blocked(blocked: Blocked) -> Condition:
    elsewhere = "Look at it in RabbitMQ: its limits, its leader, the disk."
    advice = _ROOM.get(blocked.queue.rpartition(".")[2], elsewhere)
    cause = f"the queue takes nothing: {blocked.why}"
    return Condition(State.BLOCKED, cause, advice, blocked.since, subject=f"by {blocked.queue}")


def _backlog(found: Overview) -> Iterator[Condition]:
    waiting = found.queues.get("requests", 0) + sum(worker.in_flight for worker in found.workers)
    paces = [worker.pace for worker in found.workers if worker.pace is not None]
    rate = sum(worker.rate_per_second for worker in found.workers)
    if paces and waiting > LONG_WAIT * sum(paces):
        cause = f"Marketing Cloud takes {sum(paces):,.1f} calls a second; {waiting:,} requests wait"
        advice = (
            "They are sent as fast as it takes them. Ask Marketing Cloud for a higher limit, or send fewer."
        )
        yield Condition(State.PACE, cause, advice, stops=False)
    elif rate and waiting / rate > LONG_WAIT:
        cause = f"{waiting:,} requests wait, about {span(waiting / rate)} at {rate:,.1f} a second"
        advice = "They are settled in order. If more come in, see the time of a call and OTT_PREFETCH."
        yield Condition(State.BACKLOG, cause, advice, stops=False)


_ADVICE = {
    "invalid": "The sender must correct them: the error names the field. Or correct and replay them here.",
    "rejected": "Marketing Cloud turned them down: the error says why. Correct and replay them.",
    "exhausted": "Their calls failed while others succeeded: replay one, then the rest.",
    "forbidden": "Grant the scope or the business unit in Marketing Cloud, then replay them.",
    "oversize": "They are larger than OTT_MAX_BODY_BYTES: the sender must send less. Discard them.",
    "delivery_limit": "Redelivered too often, probably because they crash the worker: read its log before "
    "replaying.",
    "expired": "They expired unread: the sender must send them again.",
    "maxlen": "The queue was full: the sender must send them again.",
}


def advice(reason: str) -> str:
    """What to do about dead letters with this reason, in a sentence or two."""
    return _ADVICE.get(reason, "Look at one of them: ott-worker dead-letters show LETTER.")


def _dead_letters(found: Overview, dead: Mapping[str, int]) -> Iterator[Condition]:
    total = found.queues.get("dead", 0) or sum(dead.values())
    if not total:
        return
    cause = "1 request was not registered" if total == 1 else f"{total:,} requests were not registered"
    next_step = "See ott-worker dead-letters list --by error."
    if dead:
        reason = max(dead, key=dead.__getitem__)
        cause += f", {dead[reason]:,} of them {reason}" if len(dead) > 1 else f" ({reason})"
        next_step = advice(reason)
    yield Condition(State.DEAD_LETTERS, cause, next_step, stops=False)
