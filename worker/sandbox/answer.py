"""The answers of the endpoints, and the error bodies of Marketing Cloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.contract.registration import FieldError, Rejection

NO_STORE = {"Cache-Control": "no-store"}
TOKEN_ERRORS = "https://developer.salesforce.com/docs"  # noqa: S105 - the error_uri that the real one sends


@dataclass(frozen=True, slots=True)
class SandboxAnswer:
    """A response as plain data; `document` becomes its JSON body, None an empty one."""

    status: int
    document: Mapping[str, Any] | Sequence[Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def token_error(status: int, error: str, description: str) -> SandboxAnswer:
    """An OAuth 2.0 error, as `/v2/token` words it."""
    return SandboxAnswer(
        status, {"error": error, "error_description": description, "error_uri": TOKEN_ERRORS}, NO_STORE
    )


def rest_error(status: int, message: str, errorcode: int = 0) -> SandboxAnswer:
    """A single error of the REST API."""
    return SandboxAnswer(status, {"message": message, "errorcode": errorcode, "documentation": ""})


def validation_error(message: str, errorcode: int, errors: Sequence[FieldError] = ()) -> SandboxAnswer:
    """The 400 of the registration endpoint, as the API document prints it."""
    document = {
        "message": message,
        "errorcode": errorcode,
        "documentation": "",
        "validationErrors": [error._asdict() for error in errors],
    }
    return SandboxAnswer(400, document)


def refused(refusal: Rejection) -> SandboxAnswer:
    """The 400 for a body that contract §3 refuses."""
    return validation_error(refusal.message, refusal.errorcode, refusal.errors)


NOT_AUTHORIZED = rest_error(401, "Not Authorized", 40004)
INSUFFICIENT_SCOPE = rest_error(403, "Insufficient Privileges", 20001)
NO_SUCH_SERVICE = rest_error(596, "Service Not Found")  # the gateway before the REST API says so
UNSUPPORTED_MEDIA_TYPE = rest_error(415, "Unsupported Media Type")
NO_SUCH_RESOURCE = rest_error(404, "Resource not found", 30003)
