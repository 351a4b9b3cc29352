"""The kinds of field that a platform's attributes are made of (contract §3)."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

_SECRET = Field(repr=False, json_schema_extra={"writeOnly": True})
_FLAG_SCHEMA = WithJsonSchema({"enum": [True, False, 0, 1]})

Text = Annotated[str, Field(min_length=1)]
"""A required string; whitespace counts, since no format is checked beyond the type."""

Secret = Annotated[str, Field(min_length=1), _SECRET]
"""A required string that may never be shown."""

OptionalSecret = Annotated[str | None, _SECRET]
"""A string that may be absent, null or empty, and may never be shown."""

Flag = Annotated[bool | Annotated[int, Field(ge=0, le=1)], _FLAG_SCHEMA]
"""Exactly `true`, `false`, `0` or `1`; forwarded as it came."""


class Attributes(BaseModel):
    """What every platform's `ottPlatformAttributes` holds.

    A field's title is the name that the API gives it in error messages. The order of the fields is the
    order of the errors: the common ones first, then the platform's own as in the API's table.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, strict=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    endpoint_url: Text = Field(title="EndpointUrl", description="Send API URL of the OTT network.")
    is_active: Flag = Field(title="IsActive", description="Whether the resource is active: 0 or 1.")


def is_secret(info: FieldInfo) -> bool:
    """Whether the field's value may never be shown."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and extra.get("writeOnly") is True


def is_flag(info: FieldInfo) -> bool:
    """Whether the field is one of the true/false/0/1 kind."""
    return _FLAG_SCHEMA in info.metadata
