"""What an answer of Marketing Cloud means (contract §6): pure decisions, no clock and no I/O."""

from enum import Enum, auto

from worker.backoff import backoff
from worker.contract.words import GENERIC, Reason, Status
from worker.marketing_cloud.answer import Answer
from worker.pipeline.request import Outcome

BLOCKED_CODE = 50200
BLOCKED_PAUSE = 60.0  # seconds; 429/50200 carries no hint
LONGEST_BACKOFF = 60.0  # seconds
_AUTHENTICATION = range(40000, 40004)
_AUTHORIZATION = range(20000, 20003)
_OUTAGE = frozenset({429, 502, 503, 504})
_RETRY = frozenset({408, 425})


class Verdict(Enum):
    """What to do about an answer."""

    REGISTERED = auto()
    REJECTED = auto()
    FORBIDDEN = auto()
    FAILED = auto()
    CREDENTIALS = auto()  # the token was turned down, or there is none
    OUTAGE = auto()  # retry; and enough of these in a row mean that Marketing Cloud is down
    RETRY = auto()  # retry; the fault may lie with this one request
    BLOCKED = auto()  # Marketing Cloud asks this client to stay away for a while

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_MEANINGS = {
    401: "the access token was turned down",
    403: "the access token was turned down",
    429: "too many requests",
    502: "bad gateway",
    503: "not available",
    504: "gateway time-out",
}
_FINAL = frozenset({Verdict.REGISTERED, Verdict.REJECTED, Verdict.FORBIDDEN, Verdict.FAILED})
_OUTCOMES: dict[Verdict, tuple[Status, Reason | None]] = {
    Verdict.REGISTERED: ("registered", None),
    Verdict.REJECTED: ("rejected", "rejected"),
    Verdict.FORBIDDEN: ("failed", "forbidden"),
    Verdict.FAILED: ("failed", "rejected"),
}


def judge(answer: Answer) -> Verdict:  # noqa: PLR0911 - the table of contract §6, row by row
    """The row of the answer table that holds."""
    status, code = answer.status, answer.errorcode
    if status is None or answer.is_page:
        return Verdict.OUTAGE
    if 200 <= status < 300 and not answer.is_error:
        return Verdict.REGISTERED
    if status == 400 or 200 <= status < 300:
        return Verdict.REJECTED
    if status == 401 or (status == 403 and code in _AUTHENTICATION):
        return Verdict.CREDENTIALS
    if status == 403:
        return Verdict.FORBIDDEN
    if status == 429 and code == BLOCKED_CODE:
        return Verdict.BLOCKED
    if status in _OUTAGE:
        return Verdict.OUTAGE
    if 400 <= status < 500 and status not in _RETRY:
        return Verdict.FAILED
    # 5xx; also 1xx and 3xx, which this API never answers: a proxy or gateway did.
    return Verdict.RETRY


def why(answer: Answer) -> str:
    """Why the gate closes, in words of our own, because Marketing Cloud's text may quote a request."""
    if answer.status is None or answer.is_page:
        return answer.message
    meaning = _MEANINGS.get(answer.status, "a failure on its side")
    if judge(answer) is Verdict.BLOCKED:
        meaning = "this client is blocked for a while"
    return f"Marketing Cloud answered {answer.status}: {meaning}"


def lacks_scope(answer: Answer) -> bool:
    """Whether the token lacks a permission, which may be granted while the token lives."""
    return answer.status == 403 and answer.errorcode in _AUTHORIZATION


def outcome(verdict: Verdict, answer: Answer) -> Outcome:
    """The outcome of a final verdict."""
    status, reason = _OUTCOMES[verdict]
    return _outcome(status, reason, answer)


def exhausted(answer: Answer) -> Outcome:
    """The outcome where attempts or budget are spent; `answer` is the last one."""
    return _outcome("failed", "exhausted", answer)


def _outcome(status: Status, reason: Reason | None, answer: Answer) -> Outcome:
    return Outcome(
        status=status,
        reason=reason,
        message=answer.message,
        errorcode=GENERIC if answer.errorcode is None else answer.errorcode,
        documentation=answer.documentation,
        errors=answer.errors,
        http_status=answer.status,
    )


def retry_wait(failures: int, base: float, hint: float | None, remaining: float) -> float:
    """Seconds to wait before the next call: the back-off, at least Marketing Cloud's hint, and at most the
    rest of the budget."""
    return min(max(backoff(failures, base, LONGEST_BACKOFF), hint or 0.0), max(remaining, 0.0))
