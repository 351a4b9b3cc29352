"""The two replies, result and error envelope: built fast, described for machines, read back (contract §4)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from worker.contract.json_body import to_json
from worker.contract.registration import FieldError
from worker.contract.settlement import Settlement
from worker.contract.timestamps import text_of
from worker.contract.words import Status

AS_OF = "When what the request says was true, where its publisher told."
UnregisteredStatus = Literal["rejected", "failed", "superseded"]


def reply_body(settlement: Settlement) -> bytes:
    """The result for `registered`; else the error envelope: the API's own error body, with the request's
    metadata beside it. `supersededBy` stands in `superseded` envelopes only."""
    envelope: dict[str, Any] = {"status": settlement.status}
    if settlement.status != "registered":
        envelope["message"] = settlement.message
        envelope["errorcode"] = settlement.errorcode
        envelope["documentation"] = settlement.documentation
        envelope["validationErrors"] = settlement.errors
    envelope["requestId"] = settlement.request_id
    envelope["ottPlatformName"] = settlement.platform
    envelope["resourceId"] = settlement.resource_id
    envelope["httpStatus"] = settlement.http_status
    envelope["attempts"] = settlement.attempts
    envelope["receivedAt"] = text_of(settlement.received_at)
    envelope["completedAt"] = text_of(settlement.completed_at)
    if settlement.as_of is not None:
        envelope["asOf"] = text_of(settlement.as_of)
    if settlement.status == "superseded":
        envelope["supersededBy"] = settlement.superseded_by
    return to_json(envelope)


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)


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
    as_of: datetime | None = Field(default=None, description=AS_OF)


class ErrorEnvelope(_Model):
    """The request is not registered: the API's error body, with the request's metadata beside it."""

    status: UnregisteredStatus
    message: str
    errorcode: int
    documentation: str
    validation_errors: tuple[FieldError, ...]
    request_id: str
    ott_platform_name: str | None
    resource_id: str | None
    http_status: int | None
    attempts: int
    received_at: datetime
    completed_at: datetime
    as_of: datetime | None = Field(default=None, description=AS_OF)
    superseded_by: str | None = Field(default=None, description="The newer request, for `superseded` only.")


REPLY: TypeAdapter[Result | ErrorEnvelope] = TypeAdapter(
    Annotated[
        Result | ErrorEnvelope,
        Field(
            title="Reply",
            description="The body of a reply: a result or an error envelope.",
            discriminator="status",
        ),
    ]
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
    as_of: datetime | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages of its errors, or its own message if it has no errors. Empty for `registered`."""
        return tuple(error.message for error in self.errors) or ((self.message,) if self.message else ())

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Reads a reply's body; raises `MalformedReply` if it is not one."""
        try:
            reply = REPLY.validate_json(body)
        except ValidationError:
            raise MalformedReply("The message is not a reply of this worker.") from None
        given = dict(reply)
        given["platform"] = given.pop("ott_platform_name")
        if isinstance(reply, ErrorEnvelope):
            del given["documentation"]
            given["errors"] = given.pop("validation_errors")
        return cls(**given)
