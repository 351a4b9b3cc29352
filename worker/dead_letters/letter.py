"""A dead letter, parsed: the worker's own and those that the broker made."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties
from worker.broker.encryption import CannotOpen, Seals, why_closed
from worker.broker.journal_index import SKEW
from worker.broker.request_message import account_of, request_id
from worker.contract.registration import parse_registration
from worker.contract.resource import Resource
from worker.contract.timestamps import microseconds, text_of
from worker.contract.words import (
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ERROR_HEADER,
    REASON_HEADER,
    RECEIVED_AT_HEADER,
    REPLAY_COUNT_HEADER,
    REQUEST_ID_HEADER,
)

BROKERS_HEADER = "x-death"


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `received_at` and `dead_at` are microseconds since the epoch, None where nothing
    tells them. `received_after` is what a replay goes by: never later than the request was received.
    `reason` is one of contract §5 or the broker's own (`delivery_limit`, `expired`)."""

    delivery: Delivery
    id: str
    reason: str
    error: str
    attempts: int
    account: str | None
    platform: str | None
    resource_id: str | None
    received_at: int | None
    received_after: int
    dead_at: int | None
    replays: int

    @property
    def resource(self) -> Resource | None:
        """The resource whose order counts; the account as the message names it."""
        if self.platform is None or self.resource_id is None:
            return None
        return Resource(self.account, self.platform, self.resource_id)

    def summary(self) -> dict[str, Any]:
        """What `list --json` prints (contract §8). Holds no secret."""
        return {
            "id": self.id,
            "reason": self.reason,
            "error": self.error,
            "attempts": self.attempts,
            "accountId": self.account,
            "ottPlatformName": self.platform,
            "resourceId": self.resource_id,
            "receivedAt": None if self.received_at is None else text_of(self.received_at),
            "deadAt": None if self.dead_at is None else text_of(self.dead_at),
            "replays": self.replays,
        }


def opened(delivery: Delivery, seals: Seals) -> Delivery:
    """The delivery with its body in the clear; where no key opens it, it stays as it is."""
    with contextlib.suppress(CannotOpen):
        delivery.body = seals.open_body(delivery.properties, delivery.body)
    return delivery


def why_unreadable(delivery: Delivery) -> str:
    """Why the body of a dead letter cannot be read, in one line; `""` where it can."""
    if delivery.oversize:
        return f"The body is larger than OTT_MAX_BODY_BYTES allows: {delivery.size} bytes"
    return why_closed(delivery.body)


def open_body(delivery: Delivery) -> bytes:
    """The body of the request that a dead letter holds. Raises CannotOpen where it cannot be read."""
    if why := why_unreadable(delivery):
        raise CannotOpen(why)
    return delivery.body


def read(delivery: Delivery, default_account: str | None) -> Letter:
    """Understand a dead letter. Never raises, whatever it holds."""
    properties = delivery.properties
    death = _broker_made(properties)
    dead_at = _moment(properties, DEAD_AT_HEADER)
    if dead_at is None or _text(properties, REASON_HEADER) is None:
        dead_at = death.get("time") or dead_at
    # One that is still sealed is no JSON: its headers tell what can be told.
    body = delivery.body
    request = parse_registration(body, content_type=None, content_encoding=None, max_bytes=len(body))
    received_at, received_after = _received(properties, death)
    return Letter(
        delivery=delivery,
        id=_text(properties, REQUEST_ID_HEADER) or request_id(delivery),
        reason=_text(properties, REASON_HEADER) or _brokers_reason(death),
        error=_text(properties, ERROR_HEADER) or "",
        attempts=_number(properties, ATTEMPTS_HEADER),
        account=account_of(properties) or default_account,
        platform=request.platform,
        resource_id=request.resource_id,
        received_at=received_at,
        received_after=received_after,
        dead_at=dead_at,
        replays=_number(properties, REPLAY_COUNT_HEADER),
    )


def _received(properties: Properties, death: Mapping[str, Any]) -> tuple[int | None, int]:
    """When the request was received, and how early that may have been. Where the worker never settled it,
    the time of its death comes near: no newer request for its resource was settled before. Else when it
    was published."""
    stamped = _moment(properties, RECEIVED_AT_HEADER)
    if stamped is not None:
        return stamped, max(0, stamped)
    time = death.get("time")
    near = time if isinstance(time, int) else _published_at(properties)
    # Another machine's clock: a replay that counts as too new would overwrite what is newer. Without any
    # time nothing can be newer for sure, so it counts as the oldest of all.
    return near, max(0, (near or 0) - SKEW)


def _published_at(properties: Properties) -> int | None:
    raw = properties.raw("timestamp")
    return int.from_bytes(raw, "big") * 1_000_000 if 0 < int.from_bytes(raw, "big") < 2**33 else None


def _broker_made(properties: Properties) -> dict[str, Any]:
    """The newest death that the broker tells of: its reason, and its time to the second."""
    deaths = properties.header(BROKERS_HEADER)
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(newest, dict):
        return {}
    time = newest.get("time")
    if not isinstance(time, datetime):
        return {"reason": newest.get("reason")}
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return {"reason": newest.get("reason"), "time": int(time.timestamp()) * 1_000_000}


def _brokers_reason(death: Mapping[str, Any]) -> str:
    """The worker rejects a request itself only where its body was too large to keep (contract §5)."""
    reason = str(death.get("reason") or "unknown")
    return "oversize" if reason == "rejected" else reason


def _text(properties: Properties, name: str) -> str | None:
    value = properties.header(name)
    return value if isinstance(value, str) and value else None


def _number(properties: Properties, name: str) -> int:
    value = properties.header(name)
    return value if isinstance(value, int) else 0


def _moment(properties: Properties, name: str) -> int | None:
    value = _text(properties, name)
    return None if value is None else microseconds(value)
