"""A registration request, parsed or rejected (contract §3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import PLATFORMS, Attributes, Platform, is_flag
from worker.contract.words import AGGREGATE, INVALID_VALUE, MALFORMED, MISSING, WRONG_TYPE

PLEASE_FIX = "Please fix the following errors"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One entry of `validationErrors`, in the API's words."""

    message: str
    errorcode: int
    documentation: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """A valid request: `resource_id` is the Messenger `pageId` or the LINE `channelId`."""

    platform: str
    resource_id: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request cannot be forwarded, as in the error envelope.

    `errorcode` is 10006 with `errors` in the API's order, or 10004 without errors if the body is not
    acceptable JSON. `platform` is set only if it is known, and `resource_id` only with it."""

    reason: Literal["invalid", "oversize"]
    message: str
    errorcode: int
    errors: tuple[FieldError, ...] = ()
    platform: str | None = None
    resource_id: str | None = None


def oversize(max_bytes: int) -> Rejection:
    """The rejection of a body that is larger than `max_bytes`."""
    return Rejection("oversize", f"The body is larger than {max_bytes} bytes; send a smaller one.", MALFORMED)


def parse_registration(
    body: bytes, *, content_type: str | None, content_encoding: str | None, max_bytes: int
) -> Registration | Rejection:
    """Parse and validate a body. Never raises. The same body always has the same result."""
    if len(body) > max_bytes:
        return oversize(max_bytes)
    try:
        _check_media_type(content_type, content_encoding)
        return validate(parse_object(body))
    except MalformedBody as problem:
        return Rejection("invalid", str(problem), MALFORMED)
    except Exception:  # a defect in the worker or in a parser
        return Rejection("invalid", "The body cannot be read.", MALFORMED)


def validate(document: Mapping[str, Any]) -> Registration | Rejection:
    """Validate a parsed body by the table of contract §3. All errors are reported, in its order."""
    name = document.get("ottPlatformName")
    attributes = document.get("ottPlatformAttributes")
    platform = PLATFORMS.get(name) if isinstance(name, str) else None
    usable = attributes if isinstance(attributes, dict) else {}

    errors = _attribute_errors(platform, usable)
    if not usable:
        errors.append(FieldError("OttPlatformAttributes is invalid", INVALID_VALUE))
    if platform is None:
        errors.append(_error("OttPlatformName", name, INVALID_VALUE))

    resource_id = _resource_id(platform, usable)
    if platform is not None and resource_id is not None and not errors:
        return Registration(platform.name, resource_id)
    known = platform.name if platform else None
    return Rejection("invalid", PLEASE_FIX, AGGREGATE, tuple(errors), known, resource_id)


def _attribute_errors(platform: Platform | None, attributes: dict[str, Any]) -> list[FieldError]:
    """The errors of the attributes. Only field names are taken from pydantic, never values."""
    model = platform.attributes if platform else Attributes
    try:
        model.__pydantic_validator__.validate_python(attributes)
    except ValidationError as invalid:
        details = invalid.errors(include_url=False, include_context=False, include_input=False)
    else:
        return []
    failed = {detail["loc"][0] for detail in details}
    return [
        _error(info.title, attributes.get(str(info.alias)), INVALID_VALUE if is_flag(info) else WRONG_TYPE)
        for info in model.model_fields.values()
        if info.alias in failed
    ]


def _error(title: str | None, value: object, code: int) -> FieldError:
    if value is None or value == "":
        return FieldError(f"{title} must be provided", MISSING)
    return FieldError(f"{title} is invalid", code)


def _resource_id(platform: Platform | None, attributes: dict[str, Any]) -> str | None:
    value = attributes.get(platform.id_field) if platform else None
    return value if isinstance(value, str) and value else None


def _check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    if content_type and content_type != "application/json":
        media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        charsets = {value.strip(' "') for name, _, value in pairs if name.strip() == "charset"}
        if media_type != "application/json" or not charsets <= {"utf-8"}:
            raise MalformedBody("The content_type is not application/json in UTF-8; send that, or none.")
    if content_encoding and content_encoding.lower() != "utf-8":
        raise MalformedBody("The content_encoding is not utf-8; send the body plain, not compressed.")
