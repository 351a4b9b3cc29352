"""What to do next, in one sentence: decided from what the pages know."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from worker.broker.overview import Overview
from worker.console.letters import Cause
from worker.contract.status import WorkerStatus
from worker.dead_letters.hints import hint

Level = Literal["good", "notice", "warning", "bad"]
LONG_WAIT = 15 * 60  # seconds for the backlog


@dataclass(frozen=True, slots=True)
class Advice:
    """How things are (`headline`), what to do (`sentence`), and where, if it is on a page."""

    level: Level
    headline: str
    sentence: str
    link: str = ""
    link_text: str = ""


def advise(state: Overview, causes: Sequence[Cause], trouble: str, *, is_known: bool) -> Advice:
    """The most urgent thing. `trouble` is why the broker could not be asked, empty where it could; it has
    not answered yet where the state is not known."""
    if trouble:
        return Advice("bad", "RabbitMQ cannot be asked", f"{trouble}. This page tries again by itself.")
    if not is_known:
        return Advice("notice", "Asking RabbitMQ", "The page fills when it answers.")
    halt = _halt(state)
    if halt is not None:
        return halt
    return _letters(causes) if causes else _backlog(state)


def _halt(state: Overview) -> Advice | None:
    """Why nothing is registered at present, if so."""
    if not state.workers:
        return _without_worker(state)
    if pause := state.pause:
        why = f": “{pause.why}”." if pause.why else "."
        return Advice(
            "warning", "Paused", f"{pause.by} paused the workers{why} Resume them when that is over."
        )
    closed = next((worker for worker in state.workers if worker.gate.state == "closed"), None)
    if closed is not None:
        return _outage(closed)
    if all(worker.state == "draining" for worker in state.workers):
        return Advice("warning", "Stopping", "Every worker drains and ends: start one, or wait for it.")
    return None


def _without_worker(state: Overview) -> Advice:
    waiting = state.queues.get("requests", 0)
    wait = f"{waiting:,} requests wait" if waiting else "Nothing waits"
    return Advice("bad", "No worker runs", f"{wait}: start one with ott-worker run.")


def _outage(worker: WorkerStatus) -> Advice:
    why = worker.gate.why or "its calls fail"
    return Advice(
        "bad",
        "Marketing Cloud does not answer",
        f"{why}. Requests wait and none is lost; the worker goes on by itself when a call succeeds. "
        "Where this lasts, run ott-worker check.",
    )


def _letters(causes: Sequence[Cause]) -> Advice:
    total, largest = sum(cause.group.count for cause in causes), causes[0]
    headline = "1 dead letter" if total == 1 else f"{total:,} dead letters"
    most = "" if len(causes) == 1 else f"Most ({largest.group.count:,}) are {largest.group.reason}. "
    return Advice(
        "notice",
        headline,
        f"{most}{hint(largest.group.reason)}",
        f"/dead-letters?cause={largest.key}",
        "Open the most frequent",
    )


def _backlog(state: Overview) -> Advice:
    waiting = state.queues.get("requests", 0)
    rate = sum(worker.rate_per_second for worker in state.workers)
    if waiting and rate and waiting / rate > LONG_WAIT:
        return Advice(
            "notice",
            f"{waiting:,} requests wait",
            f"At {rate:,.0f} a second they take about {waiting / rate / 60:,.0f} minutes.",
        )
    return Advice("good", "All is well", "Nothing to do.")


def how_long(since: datetime | None, now: datetime) -> str:
    """A span for people: `12 s`, `3 min`, `5 h`, `2 d`."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
