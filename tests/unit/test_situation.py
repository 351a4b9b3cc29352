"""The one situation: what each state is made of, and which comes first."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.rig import worker_status
from worker.broker.situation import Overview, State, judge, obstacle
from worker.contract.status import Blocked, GateStatus, Pause, WorkerStatus

NOW = datetime(2026, 11, 25, 3, 12, 30, tzinfo=UTC)
SINCE = NOW - timedelta(minutes=7)
PAUSE = Pause(by="ann@host", why="rotating", since=SINCE)


def gate(cause: str, state: str = "closed") -> GateStatus:
    return GateStatus(state=state, why="why it is", since=SINCE, cause=cause)


def worker(**more: Any) -> WorkerStatus:
    return worker_status("host:7:20261125T030000Z", **{"at": NOW, "rate_per_second": 10.0, **more})


REFUSED = worker(gate=gate("credentials"))
AWAY = worker(gate=gate("outage"))
FULL = worker(blocked=[Blocked(queue="p.replies", why="the queue is full", since=SINCE)])


def found(*workers: WorkerStatus, requests: int = 0, dead: int = 0, **more: Any) -> Overview:
    known: dict[str, Any] = {"consumers": len(workers) and 1, "knows_workers": True, **more}
    return Overview("p", list(workers), queues={"requests": requests, "replies": 0, "dead": dead}, **known)


@pytest.mark.parametrize(
    ("overview", "state", "stops", "says"),
    [
        (found(requests=12), State.NO_WORKER, True, "12 requests wait"),
        (found(), State.NO_WORKER, False, "ott-worker run"),
        (found(worker(state="draining"), requests=1), State.NO_WORKER, True, "drain"),
        (found(lost=[worker()], requests=1), State.NO_WORKER, True, "host:7 stopped reporting"),
        (
            found(worker(state="standby"), consumers=0),
            State.NOT_CONSUMING,
            False,
            "p.requests has no consumer",
        ),
        (
            found(worker(state="standby"), consumers=0, requests=3),
            State.NOT_CONSUMING,
            True,
            "3 requests wait",
        ),
        (found(lost=[worker()], consumers=1), State.BLOCKED, True, "p.requests has a consumer"),
        (found(lost=[worker()], consumers=1), State.BLOCKED, True, "rabbitmq-diagnostics alarms"),
        (found(consumers=1), State.NO_WORKER, False, "p.requests has a consumer"),
        (found(worker(state="draining")), State.NO_WORKER, False, "drain"),
        (Overview("p", knows_workers=True), State.NO_WORKER, False, "how many requests wait is not known"),
        (found(worker(state="standby"), requests=3), State.NOT_CONSUMING, True, "has another consumer"),
        (found(worker(state="standby"), requests=3), State.NOT_CONSUMING, True, "rabbitmqctl list_consumers"),
        (found(worker(), consumers=0, requests=3), State.NOT_CONSUMING, True, "has no consumer, and 3"),
        (found(worker(), consumers=0), State.WELL, False, "ALL IS WELL"),  # the queue's leader may be slow
        (
            found(worker(paused=PAUSE), pause=PAUSE),
            State.PAUSED,
            True,
            "PAUSED by ann@host, since 03:05 UTC (7 min): ",
        ),
        (found(worker(paused=PAUSE)), State.PAUSED, True, "rotating"),
        (found(REFUSED), State.CREDENTIALS, True, "does not end by itself"),
        (found(REFUSED), State.CREDENTIALS, True, "OTT_MC_CLIENT_SECRET"),
        (found(REFUSED), State.CREDENTIALS, True, "compare OTT_MC_ACCOUNT_ID and OTT_MC_REST_URL"),
        (found(AWAY), State.OUTAGE, True, "resumes by itself"),
        (found(worker(gate=gate("outage", "opening"))), State.OUTAGE, False, "answers again"),
        (found(worker(), worker(state="standby", gate=gate("outage"))), State.OUTAGE, False, "(standby)"),
        (
            found(FULL),
            State.BLOCKED,
            True,
            "BLOCKED by p.replies, since 03:05 UTC (7 min): the queue accepts no messages",
        ),
        (found(FULL), State.BLOCKED, True, "consume or delete its replies"),
        (found(worker(pace=2.0), requests=900), State.PACE, False, "2.0 calls a second"),
        (found(worker(pace=0.5, in_flight=144)), State.PACE, False, "144 requests wait"),
        (found(worker(), requests=90_000), State.BACKLOG, False, "2 h at 10.0 a second"),
        (found(worker(), requests=700), State.BACKLOG, False, "about 1 min at 10.0 a second"),
        (found(worker(), dead=3), State.DEAD_LETTERS, False, "3 requests were not registered"),
        (found(worker(), problems=["The queue p.dead may not be read"]), State.INCOMPLETE, False, "p.dead"),
        (found(worker(), worker(state="standby"), requests=9), State.WELL, False, "ALL IS WELL"),
        (found(worker(state="standby")), State.WELL, False, "ALL IS WELL"),
    ],
)
def test_each_state_names_its_cause_since_when_and_the_next_step(overview, state, stops, says):
    first, *_ = judge(overview)
    assert (first.state, first.stops) == (state, stops)
    assert says in f"{first.line(NOW)}. {first.advice}"
    assert first.advice


def test_nothing_is_called_well_that_is_not_known_to_be():
    problem = "The stream p.status may not be read by this user"
    hidden = Overview("p", queues={"requests": 0}, problems=[problem])
    assert [each.state for each in judge(hidden)] == [State.INCOMPLETE]


def test_the_most_urgent_comes_first():
    everything = found(
        REFUSED.model_copy(update={"blocked": FULL.blocked, "pace": 1.0}),
        requests=99_999,
        dead=4,
        pause=PAUSE,
    )
    states = [each.state for each in judge(everything)]
    assert states == sorted(states, key=list(State).index)
    assert states == [State.PAUSED, State.CREDENTIALS, State.BLOCKED, State.PACE, State.DEAD_LETTERS]


def test_dead_letters_are_told_by_their_most_frequent_reason():
    (condition,) = judge(found(worker(), dead=9), {"invalid": 4, "forbidden": 5})
    assert condition.cause == "9 requests were not registered, 5 of them forbidden"
    assert condition.advice.startswith("Grant the scope")


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ([worker()], ""),
        ([worker(paused=PAUSE)], "Paused by ann@host: rotating."),
        ([worker(state="draining", paused=PAUSE)], ""),
        ([AWAY], "Outage: Marketing Cloud is unavailable: why it is."),
        ([FULL], "Blocked by p.replies: the queue accepts no messages: the queue is full."),
        ([worker(), worker(state="standby", gate=gate("credentials"))], ""),
    ],
)
def test_who_waits_is_told_why(workers, says):
    assert obstacle(workers) == says
