"""The two kinds of reply, result and error envelope: writing, schema and parsing (contract §4)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

from worker.contract.json_body import to_json
from worker.contract.platforms import PLATFORM_NAME
from worker.contract.registration import FieldError
from worker.contract.settlement import Settled, Settlement
from worker.contract.timestamps import text_of


def reply_body(settlement: Settlement) -> bytes:
    """The result for `registered`, else the error envelope: the API's own error body plus the request's
    metadata. Only `superseded` envelopes have `supersededBy`."""
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


class Result(Settled):
    """The request is registered."""

    status: Literal["registered"]
    request_id: str
    platform: str = Field(alias=PLATFORM_NAME)
    resource_id: str
    http_status: int
    message: ClassVar[str] = ""
    errorcode: ClassVar[None] = None
    errors: ClassVar[tuple[FieldError, ...]] = ()
    messages: ClassVar[tuple[str, ...]] = ()
    superseded_by: ClassVar[None] = None


class ErrorEnvelope(Settled):
    """The request is not registered: the API's error body plus the request's metadata."""

    status: Literal["rejected", "failed", "superseded"]
    request_id: str
    message: str
    errorcode: int
    documentation: str
    errors: tuple[FieldError, ...] = Field(alias="validationErrors")
    platform: str | None = Field(alias=PLATFORM_NAME)
    resource_id: str | None
    http_status: int | None
    superseded_by: str | None = Field(None, description="The newer request, for `superseded` only.")

    @property
    def messages(self) -> tuple[str, ...]:
        """The messages of its errors, or its own message if it has no errors."""
        return tuple(error.message for error in self.errors) or (self.message,)


Reply = Result | ErrorEnvelope
"""A parsed reply."""

REPLY: TypeAdapter[Reply] = TypeAdapter(
    Annotated[
        Reply,
        Field(
            title="Reply",
            description="The body of a reply: a result or an error envelope.",
            discriminator="status",
        ),
    ]
)


class MalformedReply(ValueError):
    """The message is not a reply of the worker. The text quotes nothing from it."""


def parse_reply(body: bytes) -> Reply:
    """Parse a reply's body. Raises MalformedReply."""
    try:
        return REPLY.validate_json(body)
    except ValidationError:
        raise MalformedReply("The message is not a reply of this worker.") from None
