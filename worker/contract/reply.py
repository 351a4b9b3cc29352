"""The two replies, result and error envelope: built fast, described for machines, read back (contract §4)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from worker.contract.registration import FieldError
from worker.contract.words import Status

UnregisteredStatus = Literal["rejected", "failed", "superseded"]

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def registered(
    *,
    request_id: str,
    platform: str,
    resource_id: str,
    http_status: int,
    attempts: int,
    received_at: str,
    completed_at: str,
) -> bytes:
    """The result for a request that Marketing Cloud took. Times as `timestamp` writes them."""
    return to_json(
        {
            "status": "registered",
            "requestId": request_id,
            "ottPlatformName": platform,
            "resourceId": resource_id,
            "httpStatus": http_status,
            "attempts": attempts,
            "receivedAt": received_at,
            "completedAt": completed_at,
        }
    )


def not_registered(
    status: UnregisteredStatus,
    message: str,
    errorcode: int,
    documentation: str = "",
    errors: Iterable[FieldError] = (),
    *,
    request_id: str,
    platform: str | None,
    resource_id: str | None,
    http_status: int | None,
    attempts: int,
    received_at: str,
    completed_at: str,
    superseded_by: str | None = None,
) -> bytes:
    """The error envelope: the API's own error body, with the request's metadata beside it.

    `superseded_by` is the id of the newer request and stands in `superseded` envelopes only.
    """
    envelope: dict[str, Any] = {
        "status": status,
        "message": message,
        "errorcode": errorcode,
        "documentation": documentation,
        "validationErrors": [error._asdict() for error in errors],
        "requestId": request_id,
        "ottPlatformName": platform,
        "resourceId": resource_id,
        "httpStatus": http_status,
        "attempts": attempts,
        "receivedAt": received_at,
        "completedAt": completed_at,
    }
    if status == "superseded":
        envelope["supersededBy"] = superseded_by
    return to_json(envelope)


def timestamp(moment: float | datetime) -> str:
    """``2026-11-23T12:00:00.123456Z``, from seconds since the epoch or a datetime (without a zone: UTC)."""
    if not isinstance(moment, datetime):
        return timestamp_of(int(moment * 1_000_000))
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def timestamp_of(microseconds: int) -> str:
    """The same from microseconds since the epoch."""
    seconds, fraction = divmod(microseconds, 1_000_000)
    return f"{_to_the_second(seconds)}.{fraction:06d}Z"


@lru_cache(maxsize=100)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def to_json(document: Mapping[str, Any]) -> bytes:
    """A flat document as JSON, without spaces. What UTF-8 cannot hold (ids come from AMQP properties, where a
    hostile sender can place it) becomes question marks."""
    try:
        return pydantic_core.to_json(document)
    except pydantic_core.PydanticSerializationError:
        return _encode(document).encode(errors="replace")


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)


class ValidationErrorEntry(_Model):
    """One problem with the request, as the API words it."""

    message: str
    errorcode: int
    documentation: str = ""


class Result(_Model):
    """The request is registered."""

    status: Literal["registered"]
    request_id: str
    ott_platform_name: str
    resource_id: str
    http_status: int
    attempts: int
    received_at: datetime
    completed_at: datetime


class ErrorEnvelope(_Model):
    """The request is not registered: the API's error body, with the request's metadata beside it."""

    status: UnregisteredStatus
    message: str
    errorcode: int
    documentation: str
    validation_errors: tuple[ValidationErrorEntry, ...]
    request_id: str
    ott_platform_name: str | None
    resource_id: str | None
    http_status: int | None
    attempts: int
    received_at: datetime
    completed_at: datetime
    superseded_by: str | None = Field(default=None, description="The newer request, for `superseded` only.")


_EITHER: TypeAdapter[Result | ErrorEnvelope] = TypeAdapter(
    Annotated[Result | ErrorEnvelope, Field(discriminator="status")]
)


class MalformedReply(ValueError):
    """The message is not a reply of the worker; the text holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as a reader of the replies queue sees it; the error fields are empty for `registered`."""

    status: Status
    request_id: str
    platform: str | None
    resource_id: str | None
    http_status: int | None
    attempts: int
    received_at: datetime
    completed_at: datetime
    message: str = ""
    errorcode: int | None = None
    errors: tuple[FieldError, ...] = ()
    superseded_by: str | None = None

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Reads a reply's body; raises `MalformedReply` if it is not one."""
        try:
            reply = _EITHER.validate_json(body)
        except ValidationError:
            raise MalformedReply("The message is not a reply of this worker.") from None
        about = (
            reply.status,
            reply.request_id,
            reply.ott_platform_name,
            reply.resource_id,
            reply.http_status,
            reply.attempts,
            reply.received_at,
            reply.completed_at,
        )
        if isinstance(reply, Result):
            return cls(*about)
        errors = tuple(FieldError(e.message, e.errorcode, e.documentation) for e in reply.validation_errors)
        return cls(*about, reply.message, reply.errorcode, errors, reply.superseded_by)
