"""The state of a deployment (contract §9): what the broker shows, and the conditions that follow from it.
`status`, `check`, `/readyz`, the console and waiting commands all use these texts."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any

from worker.amqp.connection import Connection
from worker.amqp.queue import look
from worker.amqp.stream_reader import StreamReader
from worker.broker.status import read_orders_by, read_workers_by
from worker.broker.topology import Topology, partitions_from
from worker.contract.status import Order, Pause, WorkerStatus, standing_pause
from worker.contract.timestamps import how_long, span
from worker.errors import Problem, TopologyError

REMEMBERED = timedelta(minutes=10)  # how long a worker that stopped without draining is listed
LONG_WAIT = 60  # seconds of work; a longer backlog is reported


@dataclass(slots=True)
class Overview:
    """What the broker shows. `queues` holds the ready messages of `requests`, `replies` and `dead`;
    `consumers` is the number of consumers of `requests`. `workers` are running; `lost` stopped reporting
    without draining. `orders` are oldest first. `problems` has a line for each object that could not be
    read."""

    prefix: str
    workers: list[WorkerStatus] = field(default_factory=list)
    lost: list[WorkerStatus] = field(default_factory=list)
    pause: Pause | None = None
    orders: list[Order] = field(default_factory=list)
    queues: dict[str, int] = field(default_factory=dict)
    consumers: int | None = None
    knows_workers: bool = False
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Workers, pause and queues as a JSON document."""
        return {
            "paused": self.pause and self.pause.model_dump(mode="json"),
            "workers": [worker.model_dump(mode="json", by_alias=True) for worker in self.workers],
            "lost": [worker.model_dump(mode="json", by_alias=True) for worker in self.lost],
            "queues": self.queues,
        }


async def read_overview(connection: Connection, names: Topology) -> Overview:
    """Read the overview. Objects that are missing or forbidden are left out and named in `problems`. Raises
    BrokerUnreachable."""
    found = Overview(names.prefix)
    for name in ("requests", "replies", "dead"):
        with _recorded(found):
            found.queues[name], consumers = await look(connection, getattr(names, name))
            if name == "requests":
                found.consumers = consumers
    found.knows_workers = True  # without the stream no worker has run, or it was deleted
    try:
        now = datetime.now(UTC)
        for each in await read_workers_by(StreamReader(connection, names.status), REMEMBERED):
            if not each.is_silent(now):
                found.workers.append(each)
            elif each.state != "draining":
                found.lost.append(each)
    except TopologyError as error:
        found.knows_workers = error.problem is not Problem.FORBIDDEN and not found.consumers
        found.problems.append(str(error))
    if not found.consumers:
        # Requests that were routed wait in the partitions without a consumer.
        for routed, consumers in await partitions_from(connection, names, 1):
            waiting = 0 if consumers else routed
            found.queues["requests"] = found.queues.get("requests", 0) + waiting
    with _recorded(found):
        found.orders, _ = await read_orders_by(StreamReader(connection, names.control))
        found.pause = standing_pause(found.orders)
    return found


@contextlib.contextmanager
def _recorded(found: Overview) -> Iterator[None]:
    try:
        yield
    except TopologyError as error:
        found.problems.append(str(error))


class State(Enum):
    """The states, most urgent first, with their titles and advice."""

    UNREACHABLE = ("RabbitMQ cannot be reached", "Check it and OTT_AMQP_URL. Workers reconnect without help.")
    UNKNOWN = ("Nothing is known yet", "This takes a moment.")
    NO_WORKER = (
        "No worker is running",
        "Start one with ott-worker run. If one is running, compare its OTT_PREFIX with yours.",
    )
    NOT_CONSUMING = (
        "No worker consumes requests",
        "Read the worker's log and /readyz; restart it if this lasts.",
    )
    PAUSED = ("Paused", "Resume with: ott-worker resume")
    CREDENTIALS = (
        "Credentials refused",
        "This does not end by itself: replace OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET, or what "
        "ott-worker check names. If a token is issued but rejected, compare OTT_MC_ACCOUNT_ID "
        "and OTT_MC_REST_URL with the package, and grant what it lacks.",
    )
    OUTAGE = (
        "Outage",
        "Requests wait and none is lost. Work resumes by itself. If this lasts, run ott-worker check.",
    )
    BLOCKED = ("Blocked", "Check the queue in RabbitMQ: its limits, its leader, the disk.")
    INCOMPLETE = ("Not everything is known", "See ott-worker check.")
    PACE = (
        "Speed limit",
        "Calls use the whole limit. Ask Marketing Cloud for a higher one, or send fewer requests.",
    )
    BACKLOG = (
        "Backlog",
        "Requests are settled in order. If the backlog grows, check the call latency and OTT_PREFETCH.",
    )
    DEAD_LETTERS = ("Dead letters", "See ott-worker dead-letters list --by error.")
    WELL = ("All is well", "Nothing to do.")

    def __init__(self, title: str, advice: str) -> None:
        self.title = title
        self.advice = advice


@dataclass(slots=True)
class Condition:
    """One state with its cause, its start and advice. `stops`: requests are not settled while it lasts.
    `subject` follows the title: `by …`."""

    state: State
    cause: str
    advice: str = ""
    since: datetime | None = None
    stops: bool = False
    subject: str = ""

    def __post_init__(self) -> None:
        self.advice = self.advice or self.state.advice

    @property
    def level(self) -> str:
        """The severity: `bad`, `notice` or `good`."""
        return "bad" if self.stops else "good" if self.state is State.WELL else "notice"

    @property
    def headline(self) -> str:
        """The title with its subject."""
        return f"{self.state.title} {self.subject}".rstrip()

    def line(self, now: datetime) -> str:
        """The title, the start and the cause in one line."""
        title = f"{self.state.title.upper()} {self.subject}".rstrip()
        since = f", since {self.since:%H:%M} UTC ({how_long(self.since, now)})" if self.since else ""
        return f"{title}{since}: {self.cause.rstrip('.')}"

    def document(self) -> dict[str, Any]:
        """The condition as a JSON document."""
        return {
            "state": self.state.name.lower(),
            "headline": self.headline,
            "cause": self.cause,
            "since": self.since and self.since.isoformat(),
            "advice": self.advice,
            "stops": self.stops,
        }


def judge(found: Overview, dead: Mapping[str, int] = MappingProxyType({})) -> list[Condition]:
    """The conditions of a deployment, most urgent first; State.WELL if there is none. `dead` counts dead
    letters by reason."""
    conditions = [
        *([Condition(State.INCOMPLETE, "; ".join(found.problems))] if found.problems else []),
        *_of_consumers(found),
        *_of_workers(found.workers, found.pause),
        *_of_backlog(found),
        *_of_dead_letters(found.queues.get("dead", 0) or sum(dead.values()), dead),
    ]
    return sorted(conditions, key=_urgency) or [Condition(State.WELL, "requests are settled as they arrive")]


def of_worker(worker: WorkerStatus) -> list[Condition]:
    """What stops or slows one worker."""
    gate, conditions = worker.gate, []
    if worker.paused is not None:
        conditions.append(_paused(worker.paused))
    if gate.state == "opening":
        cause = f"Marketing Cloud answers again, and concurrency increases: {gate.why or 'an outage ends'}"
        conditions.append(Condition(State.OUTAGE, cause, "Nothing to do.", gate.since))
    elif gate.state == "closed":
        is_refused = gate.cause == "credentials"
        cause = "Marketing Cloud refuses this worker" if is_refused else "Marketing Cloud is unavailable"
        state = State.CREDENTIALS if is_refused else State.OUTAGE
        cause += f": {gate.why or 'no reason given'}"
        conditions.append(Condition(state, cause, since=gate.since, stops=True))
    for blocked in worker.blocked:
        cause = f"the queue accepts no messages: {blocked.why}"
        advice = _ROOM.get(blocked.queue.rpartition(".")[2])
        subject = f"by {blocked.queue}"
        conditions.append(Condition(State.BLOCKED, cause, advice or "", blocked.since, True, subject))
    return conditions


_HELD = "See rabbitmq-diagnostics alarms (memory, disk), and rabbitmqctl list_consumers."
_ROOM = {
    "replies": "Make room: consume or delete its replies, or raise its max-length.",
    "dead": "Make room: replay or discard dead letters, or raise its max-length.",
}


def obstacle(workers: Iterable[WorkerStatus]) -> str:
    """Why the workers settle no requests, in a sentence; empty if they do."""
    stopping = [each for each in _of_workers(workers) if each.stops]
    if not stopping:
        return ""
    first = min(stopping, key=_urgency)
    return f"{first.headline}: {first.cause.rstrip('.')}."


def _urgency(condition: Condition) -> int:
    return list(State).index(condition.state)


def _of_consumers(found: Overview) -> Iterator[Condition]:
    if not found.knows_workers:
        return
    waiting = found.queues.get("requests", 0)
    wait = f"{waiting:,} requests wait" if waiting != 1 else "1 request waits"
    wait = wait if "requests" in found.queues else "how many requests wait is not known"
    running = [worker for worker in found.workers if worker.state != "draining"]
    if not running:
        lost = f"; {found.lost[-1].place} stopped reporting: killed or cut off" if found.lost else ""
        ending = "; the running ones are draining" if found.workers else ""
        since = found.lost[-1].at if found.lost and not found.workers else None
        state, advice = State.NO_WORKER, ""
        if found.consumers and not found.workers:
            state, advice = State.BLOCKED if found.lost else state, _HELD
            ending = f"; {found.prefix}.requests has a consumer nevertheless"
        yield Condition(state, f"{wait}{lost}{ending}", advice, since, waiting > 0 or state is State.BLOCKED)
        return
    is_active = any(worker.state == "active" for worker in running)
    has_consumer = found.consumers != 0  # or that is unknown
    # A killed worker is listed for a while. Waiting requests without a consumer show it at once.
    if found.pause is None and (waiting if is_active is not has_consumer else not is_active):
        which = ", ".join(worker.place for worker in running[:3])
        has = "has another consumer" if has_consumer else "has no consumer"
        cause = f"{which}: reported recently, but {found.prefix}.requests {has}, and {wait}"
        advice = "Find it with rabbitmqctl list_consumers, and stop it unless it is a worker."
        yield Condition(State.NOT_CONSUMING, cause, advice if has_consumer else "", stops=waiting > 0)


def _of_workers(workers: Iterable[WorkerStatus], pause: Pause | None = None) -> Iterable[Condition]:
    """The pause, and the conditions that workers report, each once. While a worker is active, conditions of a
    standby do not count as stopping."""
    conditions = [] if pause is None else [_paused(pause)]
    running = sorted(
        (worker for worker in workers if worker.state != "draining"), key=lambda each: each.state != "active"
    )
    for worker in running:
        is_idle = worker.state != "active" and running[0].state == "active"
        for each in of_worker(worker):
            cause = f"{worker.place} (standby): {each.cause}"
            conditions.append(replace(each, stops=False, cause=cause) if is_idle else each)
    # Of conditions with the same headline, the first.
    return {each.headline: each for each in reversed(conditions)}.values()


def _paused(pause: Pause) -> Condition:
    cause, subject = pause.why or "no reason given", f"by {pause.by}"
    return Condition(State.PAUSED, cause, since=pause.since, stops=True, subject=subject)


def _of_backlog(found: Overview) -> Iterator[Condition]:
    waiting = found.queues.get("requests", 0) + sum(worker.in_flight for worker in found.workers)
    pace = sum(worker.pace or 0 for worker in found.workers)
    rate = sum(worker.rate_per_second for worker in found.workers)
    if pace and waiting > LONG_WAIT * pace:
        cause = f"Marketing Cloud accepts {pace:,.1f} calls a second; {waiting:,} requests wait"
        yield Condition(State.PACE, cause)
    elif rate and waiting / rate > LONG_WAIT:
        cause = f"{waiting:,} requests wait, about {span(waiting / rate)} at {rate:,.1f} a second"
        yield Condition(State.BACKLOG, cause)


def _of_dead_letters(total: int, reasons: Mapping[str, int]) -> Iterator[Condition]:
    if total:
        cause = "1 request was not registered" if total == 1 else f"{total:,} requests were not registered"
        reason = max(reasons, key=reasons.__getitem__, default="")
        if reason:
            cause += f", {reasons[reason]:,} of them {reason}" if len(reasons) > 1 else f" ({reason})"
        yield Condition(State.DEAD_LETTERS, cause, advice(reason) if reason else "")


_ADVICE = {
    "invalid": "The sender must correct them: the error names the field. Or correct and replay them here.",
    "rejected": "Marketing Cloud rejected them: the error says why. Correct and replay them.",
    "exhausted": "Their calls failed while others succeeded: replay one, then the rest.",
    "forbidden": "Grant the scope or the business unit in Marketing Cloud, then replay them.",
    "oversize": "They are larger than OTT_MAX_BODY_BYTES: the sender must reduce them. Discard them.",
    "delivery_limit": "Redelivered too often, probably because they crash the worker: read its log before "
    "replaying.",
    "expired": "They expired unread: the sender must send them again.",
    "maxlen": "The queue was full: the sender must send them again.",
}


def advice(reason: str) -> str:
    """What to do about dead letters with this reason."""
    return _ADVICE.get(reason, "Look at one of them: ott-worker dead-letters show LETTER.")
