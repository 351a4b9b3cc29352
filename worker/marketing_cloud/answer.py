"""Marketing Cloud's answers as plain data (contract §6)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import partial
from typing import Any

from worker.contract.registration import FieldError
from worker.contract.secrets import SecretMask
from worker.contract.words import GENERIC
from worker.marketing_cloud.response import Response

MESSAGE_LIMIT = 1000  # characters of a message that are passed on
ERRORS_LIMIT = 100  # entries of validationErrors that are passed on
HINT_LIMIT = 86_400  # seconds; a longer hint is ignored
LONGEST_PAUSE = 300.0  # seconds that one hint can pause all calls
PAGE_MESSAGE = (
    "{} was answered with a web page, not by Marketing Cloud's API: a login, maintenance or firewall page?"
)
# Statuses that keep their meaning even with a page as the body.
NO_PAGE = frozenset({401, 407, 408, 425, 429})


class Cause(Enum):
    """Why a call or a token request failed; the value is its text."""

    NO_ANSWER = "no answer"
    PAGE = "a web page"
    CREDENTIALS = "the access token was rejected"
    THROTTLED = "too many requests"
    BLOCKED = "this client is blocked for a while"
    BAD_GATEWAY = "bad gateway"
    NOT_AVAILABLE = "not available"
    GATEWAY_TIMEOUT = "gateway time-out"
    ERROR = "a failure on its side"
    INVALID_CLIENT = "the client id or secret is wrong"
    UNAUTHORIZED_CLIENT = "the client may not request tokens from this address"
    INVALID_SCOPE = "the client lacks a scope"
    TOKEN_REFUSED = "the token was refused"  # noqa: S105 - a sentence
    NO_TOKEN = "the answer is not a token"  # noqa: S105

    @property
    def is_refusal(self) -> bool:
        """Whether the credentials are refused: someone must correct them."""
        oauth = (Cause.INVALID_CLIENT, Cause.UNAUTHORIZED_CLIENT, Cause.INVALID_SCOPE, Cause.TOKEN_REFUSED)
        return self is Cause.CREDENTIALS or self in oauth


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of one call. `status` is the HTTP status, or None without an answer; then `message` says
    why.

    `retry_after` is the longest of Marketing Cloud's hints, in seconds, or None. `is_page`: another server
    has answered with a web page, such as a login, a maintenance notice or a firewall's."""

    status: int | None
    message: str = ""
    errorcode: int | None = None
    documentation: str = ""
    errors: tuple[FieldError, ...] = ()
    retry_after: float | None = None
    is_page: bool = False

    @property
    def is_error(self) -> bool:
        """Whether it is an error object of the API, whatever the status."""
        return bool(self.errorcode)

    @property
    def pause(self) -> float:
        """Seconds that Marketing Cloud asks this client to wait, at most LONGEST_PAUSE."""
        return min(self.retry_after or 0.0, LONGEST_PAUSE)


def read_answer(response: Response, now: datetime) -> Answer:
    """The answer in an HTTP response. Any response is accepted. If the body is not the API's error object,
    the message is a plain sentence."""
    status, headers, body = response
    is_success = 200 <= status < 300
    if is_success and not body:
        return Answer(status)
    if 200 <= status < 500 and status not in NO_PAGE and _is_page(headers, body):
        return Answer(status, PAGE_MESSAGE.format(f"The request ({status})"), is_page=True)
    document = json_object(body)
    message, errorcode = _text(document.get("message")), _code(document.get("errorcode"))
    if is_success and not (message and errorcode):
        return Answer(status)
    hints = (
        _header_hint(headers.get("retry-after"), _date(headers.get("date")) or now),
        _seconds(document.get("retryAfter")),
    )
    return Answer(
        status=status,
        message=message or f"Marketing Cloud answered {status}.",
        errorcode=errorcode,
        documentation=_text(document.get("documentation")),
        errors=tuple(_errors(document)),
        retry_after=max((hint for hint in hints if hint is not None), default=None),
    )


def masked(answer: Answer, mask: SecretMask) -> Answer:
    """The answer without secrets, because Marketing Cloud may quote the request. Without a status the message
    is the worker's own."""
    if answer.status is None:
        return answer
    clean = partial(mask.upstream, limit=MESSAGE_LIMIT)
    return replace(
        answer,
        message=clean(answer.message),
        documentation=clean(answer.documentation),
        errors=tuple(
            FieldError(clean(e.message), e.errorcode, clean(e.documentation)) for e in answer.errors
        ),
    )


def _is_page(headers: Mapping[str, str], body: bytes) -> bool:
    kind = headers.get("content-type", "").lower()
    return "html" in kind.partition(";")[0] or body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; empty if it has none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _errors(document: dict[str, Any]) -> Iterable[FieldError]:
    # The general guide names the list additionalErrors, this API validationErrors.
    entries = document.get("validationErrors") or document.get("additionalErrors")
    for entry in entries[:ERRORS_LIMIT] if isinstance(entries, list) else ():
        if isinstance(entry, dict) and _text(entry.get("message")):
            code = _code(entry.get("errorcode"))
            yield FieldError(
                _text(entry["message"]),
                GENERIC if code is None else code,
                _text(entry.get("documentation")),
            )


def _text(value: object) -> str:
    return value[: 2 * MESSAGE_LIMIT] if isinstance(value, str) else ""


def _code(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _seconds(value: object) -> float | None:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        return seconds if 0 <= (seconds := float(value)) < HINT_LIMIT else None
    except (ValueError, OverflowError):
        return None


def _header_hint(value: str | None, now: datetime) -> float | None:
    """`Retry-After`: seconds, or a date (RFC 9110 §10.2.3)."""
    if not value:
        return None
    moment = _date(value)
    return _seconds(value if moment is None else max(0.0, (moment - now).total_seconds()))


def _date(value: str | None) -> datetime | None:
    """An HTTP date (RFC 9110 §5.6.7)."""
    try:
        moment = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
