"""The meaning of Marketing Cloud's answers (contract §6): pure decisions, no clock and no I/O."""

from enum import Enum, auto

from worker.backoff import Backoff
from worker.contract.words import GENERIC, Reason, Status
from worker.marketing_cloud.answer import Answer, Cause
from worker.pipeline.request import Outcome

BLOCKED_CODE = 50200
BLOCKED_PAUSE = 60.0  # seconds; 429/50200 carries no hint
LONGEST_BACKOFF = 60.0  # seconds
_AUTHENTICATION = range(40000, 40004)
AUTHORIZATION = range(20000, 20003)  # the token lacks a scope; another token may have it


class Verdict(Enum):
    """What to do about an answer."""

    REGISTERED = auto()
    REJECTED = auto()
    FORBIDDEN = auto()
    FAILED = auto()
    CREDENTIALS = auto()  # the token was rejected, or there is none
    OUTAGE = auto()  # retry; enough of these in a row mean that Marketing Cloud is unavailable
    RETRY = auto()  # retry; this one request may be the cause
    THROTTLED = auto()  # a speed limit is exceeded: retry when the pace allows it
    BLOCKED = auto()  # Marketing Cloud blocks this client for a while
    CROWDED = auto()  # too many requests wait for tokens of other accounts


# The meaning of a status, unless the answer's body is more specific.
_ROWS = {
    400: (Verdict.REJECTED, Cause.ERROR),
    401: (Verdict.CREDENTIALS, Cause.CREDENTIALS),
    403: (Verdict.FORBIDDEN, Cause.CREDENTIALS),
    408: (Verdict.RETRY, Cause.ERROR),
    425: (Verdict.RETRY, Cause.ERROR),
    429: (Verdict.THROTTLED, Cause.THROTTLED),
    502: (Verdict.OUTAGE, Cause.BAD_GATEWAY),
    503: (Verdict.OUTAGE, Cause.NOT_AVAILABLE),
    504: (Verdict.OUTAGE, Cause.GATEWAY_TIMEOUT),
}
_OTHER_4XX = (Verdict.FAILED, Cause.ERROR)
_OTHERS = (Verdict.RETRY, Cause.ERROR)  # 5xx; also 1xx and 3xx, which only a proxy or gateway sends
OUTCOMES: dict[Verdict, tuple[Status, Reason | None]] = {
    Verdict.REGISTERED: ("registered", None),
    Verdict.REJECTED: ("rejected", "rejected"),
    Verdict.FORBIDDEN: ("failed", "forbidden"),
    Verdict.FAILED: ("failed", "rejected"),
    Verdict.CROWDED: ("failed", "exhausted"),
}


def judge(answer: Answer) -> tuple[Verdict, Cause]:
    """The verdict by the answer table (contract §6); and the cause, if the call is retried."""
    status, code = answer.status, answer.errorcode
    if status is None:
        return Verdict.OUTAGE, Cause.NO_ANSWER
    if answer.is_page:
        return Verdict.RETRY, Cause.PAGE
    if 200 <= status < 300:
        return Verdict.REJECTED if answer.is_error else Verdict.REGISTERED, Cause.ERROR
    if status == 403 and code in _AUTHENTICATION:
        return Verdict.CREDENTIALS, Cause.CREDENTIALS
    if status == 429 and code == BLOCKED_CODE:
        return Verdict.BLOCKED, Cause.BLOCKED
    return _ROWS.get(status, _OTHER_4XX if 400 <= status < 500 else _OTHERS)


def why(answer: Answer, cause: Cause) -> str:
    """The cause as text, without Marketing Cloud's text, which may quote a request."""
    if answer.status is None or answer.is_page:
        return answer.message
    return f"Marketing Cloud answered {answer.status}: {cause.value}"


def outcome(verdict: Verdict, answer: Answer) -> Outcome:
    """The outcome of a request with this last answer. If the answer is not final, the retries are used up."""
    status, reason = OUTCOMES.get(verdict, ("failed", "exhausted"))
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
    wait = Backoff(base, LONGEST_BACKOFF).draw(failures)
    return min(max(wait, hint or 0.0), max(remaining, 0.0))
