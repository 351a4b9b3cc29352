"""A request as it arrived, and what becomes of it: plain data."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties
from worker.contract.registration import FieldError, Registration, Rejection, parse_registration
from worker.contract.reply import timestamp_of
from worker.contract.words import ACCOUNT_HEADER, RECEIVED_AT_HEADER, REQUEST_ID_HEADER, Reason, Status

ACCOUNT_LENGTH = 64  # characters
LATEST = 4_102_444_800_000_000  # microseconds since the epoch: the year 2100


class Resource(NamedTuple):
    """What a registration overrides; requests for one resource go one at a time (contract §2)."""

    account: str | None
    platform: str
    id: str


@dataclass(slots=True, eq=False)
class Request:
    """One delivery, parsed. `received_at` is microseconds since the epoch and grows from request to
    request; for a replay it is when the original was first received."""

    id: str
    delivery: Delivery
    account: str | None
    received_at: int
    parsed: Registration | Rejection
    resource: Resource | None
    is_replay: bool
    attempts: int = 0
    queued: float = 0.0  # seconds spent waiting for the rate limit
    phase: Literal["waiting", "calling", "settling"] = "waiting"

    @property
    def platform(self) -> str | None:
        return self.parsed.platform

    def header(self, name: str) -> object:
        """A header of the message, or None."""
        return self.delivery.properties.header(name)

    @property
    def resource_id(self) -> str | None:
        return self.parsed.resource_id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `reason` is set where it is dead-lettered."""

    status: Status
    reason: Reason | None = None
    message: str = ""
    errorcode: int = 0
    documentation: str = ""
    errors: tuple[FieldError, ...] = ()
    http_status: int | None = None
    superseded_by: str | None = None


class Clock:
    """Times of arrival: the wall clock, but never twice the same and never behind `floor`, so that a
    later arrival always has the later time, also after a fail-over to a machine whose clock is behind."""

    def __init__(self, now: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._now = now
        self._last = 0

    def stamp(self) -> int:
        """Microseconds since the epoch."""
        self._last = max(self._now(), self._last + 1)
        return self._last

    @property
    def latest(self) -> int:
        """The newest stamp, or the floor if that is higher."""
        return self._last

    def not_before(self, moment: int) -> None:
        """Raise the floor: stamps from now on are later than `moment`. One beyond this century is no time
        of a worker's: whoever may publish can write into the journal."""
        if moment < LATEST:
            self._last = max(self._last, moment)


def receive(delivery: Delivery, clock: Clock, max_body_bytes: int, default_account: str | None) -> Request:
    """Understand a delivery. Never raises, whatever the message."""
    properties = delivery.properties
    account = account_of(properties)
    if account is None:
        parsed: Registration | Rejection = Rejection(
            "invalid", f"{ACCOUNT_HEADER} must be the MID of a business unit.", 10001
        )
    else:
        parsed = parse_registration(
            delivery.body,
            content_type=properties.text("content_type"),
            content_encoding=properties.text("content_encoding"),
            max_bytes=max_body_bytes,
        )
    account = account or default_account
    resource = (
        Resource(account, parsed.platform, parsed.resource_id) if isinstance(parsed, Registration) else None
    )
    now = clock.stamp()
    original = _original_time(properties)
    return Request(
        id=request_id(delivery),
        delivery=delivery,
        account=account,
        received_at=now if original is None else min(original, now),
        parsed=parsed,
        resource=resource,
        is_replay=original is not None,
    )


def request_id(delivery: Delivery) -> str:
    """The message id; without one, the id that a replayed dead letter had; else a digest of what a
    redelivery has in common with the first."""
    properties = delivery.properties
    earlier = properties.header(REQUEST_ID_HEADER) if properties.has_header(RECEIVED_AT_HEADER) else None
    given = properties.text("message_id") or (earlier if isinstance(earlier, str) else None)
    if given:
        return given
    digest = hashlib.blake2b(delivery.body, digest_size=16, person=b"ott-request-id")
    for name in ("correlation_id", "reply_to", "timestamp"):
        digest.update(b"\0" + properties.raw(name))
    digest.update(b"\0" + str(properties.header(ACCOUNT_HEADER)).encode(errors="replace"))
    return digest.hexdigest()


def account_of(properties: Properties) -> str | None:
    """The account that the header names, `""` where there is none, None where it is no account id."""
    if not properties.has_header(ACCOUNT_HEADER):
        return ""
    value = properties.header(ACCOUNT_HEADER)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or len(value) > ACCOUNT_LENGTH:
        return None
    account = value.strip()
    return account if account.isascii() and account.isprintable() else None


def _original_time(properties: Properties) -> int | None:
    value = properties.header(RECEIVED_AT_HEADER) if properties.has_header(RECEIVED_AT_HEADER) else None
    return microseconds(value) if isinstance(value, str) else None


def microseconds(moment: str) -> int | None:
    """Microseconds since the epoch of a time as the contract writes it, or None."""
    try:
        parsed = datetime.fromisoformat(moment)
        if parsed.tzinfo is None:
            return None
        # An offset can lead out of the years that a time can be written in.
        span = parsed.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return (span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds


def text_of(moment: int) -> str:
    """Microseconds since the epoch as the contract writes a time."""
    return timestamp_of(moment)
