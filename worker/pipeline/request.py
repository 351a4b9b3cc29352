"""A request and its outcome, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from worker.amqp.consumer import Delivery
from worker.broker.encryption import DecryptionError, Encryptor, looks_encrypted
from worker.broker.request_message import account_of, as_of, first_received_at, is_from_operator, request_id
from worker.contract.registration import FieldError, Registration, Rejection, oversize, parse_registration
from worker.contract.settlement import Resource
from worker.contract.words import ACCOUNT_HEADER, MALFORMED, WRONG_TYPE, Reason, Status
from worker.events import EventListener
from worker.settings import Settings


@dataclass(slots=True, eq=False)
class Request:
    """One delivery, parsed. Times are microseconds since the epoch. `received_at` increases from request to
    request; for a replay it is when the original was received. `as_of` is when its data was true, if its
    publisher stated it; never later than `received_at`."""

    id: str
    delivery: Delivery
    account: str | None
    received_at: int
    parsed: Registration | Rejection
    resource: Resource | None
    is_replay: bool
    as_of: int | None = None
    attempts: int = 0
    spent: float = 0.0  # seconds of the budget used by calls and back-offs that count
    throttled: int = 0  # how often, while others were answered
    answered: int = -1  # `Flow.answered` when it was last throttled
    phase: Literal["waiting", "calling", "settling"] = "waiting"
    older: "Sequence[Request]" = ()  # the requests that it supersedes if it is registered (contract §2)

    @property
    def true_at(self) -> int:
        """The time that decides which request of a resource is the newest (contract §2)."""
        return self.received_at if self.as_of is None else self.as_of

    def header(self, name: str) -> object:
        """A header of the message, or None."""
        return self.delivery.properties.header(name)


class Outcome(NamedTuple):
    """The outcome of a request. `reason` is set if it is dead-lettered."""

    status: Status
    reason: Reason | None = None
    message: str = ""
    errorcode: int = 0
    documentation: str = ""
    errors: tuple[FieldError, ...] = ()
    http_status: int | None = None
    superseded_by: str | None = None


@dataclass(frozen=True, slots=True)
class RequestParser:
    """Parses deliveries."""

    settings: Settings
    encryptor: Encryptor
    events: EventListener

    def parse(self, delivery: Delivery, now: int) -> Request:
        """The request in a delivery that is received now. Never raises, whatever the message."""
        properties = delivery.properties
        is_replay = is_from_operator(delivery, self.settings.prefix)
        original = first_received_at(properties) if is_replay else None
        account = account_of(properties)
        parsed = self._parse_body(delivery, account, is_replay=is_replay)
        account = account or self.settings.mc_account_id
        resource = None
        if isinstance(parsed, Registration):
            resource = Resource(account, parsed.platform, parsed.resource_id)
        id_ = request_id(delivery, from_operator=is_replay)
        received_at = now if original is None else min(original, now)
        try:
            true_at = as_of(properties)
        except ValueError as error:
            self.events.as_of_ignored(id_, str(error))
            true_at = None
        return Request(
            id=id_,
            delivery=delivery,
            account=account,
            received_at=received_at,
            parsed=parsed,
            resource=resource,
            is_replay=is_replay,
            as_of=None if true_at is None else max(0, min(true_at, received_at)),
        )

    def _parse_body(
        self, delivery: Delivery, account: str | None, *, is_replay: bool
    ) -> Registration | Rejection:
        if delivery.oversize:
            return oversize(self.settings.max_body_bytes)
        if account is None:
            return Rejection("invalid", f"{ACCOUNT_HEADER} must be the MID of a business unit.", WRONG_TYPE)
        properties = delivery.properties
        if is_replay and looks_encrypted(delivery.body):
            try:
                delivery.body = self.encryptor.decrypt(properties, delivery.body)
            except DecryptionError as error:
                return Rejection("invalid", f"{error}.", MALFORMED)
        return parse_registration(
            delivery.body,
            content_type=properties.text("content_type"),
            content_encoding=properties.text("content_encoding"),
            max_bytes=self.settings.max_body_bytes,
        )
