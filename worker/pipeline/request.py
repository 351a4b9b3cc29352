"""A request as it arrived, and what becomes of it: plain data."""

from dataclasses import dataclass
from typing import Literal

from worker.amqp.consumer import Delivery
from worker.broker.request_message import account_of, first_received_at, request_id
from worker.contract.registration import FieldError, Registration, Rejection, oversize, parse_registration
from worker.contract.resource import Resource
from worker.contract.words import ACCOUNT_HEADER, WRONG_TYPE, Reason, Status
from worker.pipeline.arrival_clock import ArrivalClock


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

    @property
    def resource_id(self) -> str | None:
        return self.parsed.resource_id

    def header(self, name: str) -> object:
        """A header of the message, or None."""
        return self.delivery.properties.header(name)


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


def parse_request(
    delivery: Delivery, clock: ArrivalClock, max_body_bytes: int, default_account: str | None
) -> Request:
    """The request that a delivery holds, stamped with its time of arrival. Never raises, whatever the
    message."""
    properties = delivery.properties
    account = account_of(properties)
    parsed: Registration | Rejection
    if delivery.oversize:
        parsed = oversize(max_body_bytes)
    elif account is None:
        parsed = Rejection("invalid", f"{ACCOUNT_HEADER} must be the MID of a business unit.", WRONG_TYPE)
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
    original = first_received_at(properties)
    return Request(
        id=request_id(delivery),
        delivery=delivery,
        account=account,
        received_at=now if original is None else min(original, now),
        parsed=parsed,
        resource=resource,
        is_replay=original is not None,
    )
