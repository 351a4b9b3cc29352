"""The platforms and their attributes (contract §3). The table `PLATFORMS` holds everything in which they
differ."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

_WRITE_ONLY: JsonDict = {"writeOnly": True}
_SECRET = Field(repr=False, json_schema_extra=_WRITE_ONLY)
_FLAG_SCHEMA = WithJsonSchema({"enum": [True, False, 0, 1]})

Text = Annotated[str, Field(min_length=1)]
"""A required string. Whitespace counts as content: only the type is checked, not the format."""

Secret = Annotated[str, Field(min_length=1), _SECRET]
"""A required string that may never be shown."""

OptionalSecret = Annotated[str | None, _SECRET]
"""A string that may be absent, null or empty, and may never be shown."""

Flag = Annotated[bool | Annotated[int, Field(ge=0, le=1)], _FLAG_SCHEMA]
"""Exactly `true`, `false`, `0` or `1`; forwarded unchanged."""


class Attributes(BaseModel):
    """The attributes common to all platforms.

    A field's title is its name in the API's error messages. The order of the fields is the order of the
    errors: the common ones first, then the platform's own as in the API's table."""

    model_config = ConfigDict(
        alias_generator=to_camel, strict=True, frozen=True, extra="ignore", hide_input_in_errors=True
    )

    endpoint_url: Text = Field(title="EndpointUrl", description="Send API URL of the OTT network.")
    is_active: Flag = Field(title="IsActive", description="Whether the resource is active: 0 or 1.")


def is_flag(info: FieldInfo) -> bool:
    """Whether the field is a Flag."""
    return _FLAG_SCHEMA in info.metadata


class MessengerAttributes(Attributes):
    """`ottPlatformAttributes` of a Messenger page, in the order of the API's table."""

    application_id: Text = Field(title="ApplicationId", description="Facebook application id.")
    application_secret: Secret = Field(title="ApplicationSecret", description="Facebook application secret.")
    page_id: Text = Field(title="PageId", description="Facebook page id.")
    page_name: Text = Field(title="PageName", description="Facebook page name.")
    page_access_token: Secret = Field(
        title="PageAccessToken", description="Access token that authenticates messages sent to Messenger."
    )
    callback_verify_token: Secret = Field(
        title="CallbackVerifyToken", description="Facebook token that verifies callback events."
    )


class LineAttributes(Attributes):
    """`ottPlatformAttributes` of a LINE channel, in the order of the API's table."""

    channel_id: Text = Field(title="ChannelId", description="LINE channel id.")
    channel_name: Text = Field(title="ChannelName", description="LINE channel name.")
    channel_secret: Secret = Field(title="ChannelSecret", description="LINE channel secret.")
    customer_connect_secret: OptionalSecret = Field(
        None,
        title="CustomerConnectSecret",
        description="Validates LINE inbound events when the Switcher API is used.",
    )
    is_transactional: Flag = Field(
        title="isTransactional", description="Whether the channel is transactional (1) or a reseller's (0)."
    )
    is_test_channel: Flag = Field(
        title="isTestChannel", description="Whether this is a test channel: 0 or 1."
    )


class Platform:
    """One row of `PLATFORMS`.

    `id_field` is the attribute that identifies a resource, and `name_field` the one with its name. `fields`
    lists every attribute as named in the body, in the order of the errors. `noun` is "page" or "channel"."""

    def __init__(self, name: str, attributes: type[Attributes], *, id_field: str) -> None:
        self.name = name
        self.attributes = attributes
        self.id_field = id_field
        self.noun = id_field.removesuffix("Id")
        self.name_field = f"{self.noun}Name"
        self.fields = tuple(str(info.alias) for info in attributes.model_fields.values())


PLATFORMS: Mapping[str, Platform] = {
    platform.name: platform
    for platform in (
        Platform("messenger", MessengerAttributes, id_field="pageId"),
        Platform("line", LineAttributes, id_field="channelId"),
    )
}
"""Every known platform by its `ottPlatformName`."""

_INFOS = {
    str(info.alias): info
    for platform in PLATFORMS.values()
    for info in platform.attributes.model_fields.values()
}
FIELDS = tuple(_INFOS)
"""The attributes of all platforms, as named in the body."""

FLAG_FIELDS = frozenset(name for name, info in _INFOS.items() if is_flag(info))
ID_FIELDS = frozenset(name for name in FIELDS if name.endswith("Id"))
NAME_FIELDS = frozenset(platform.name_field for platform in PLATFORMS.values())

SECRET_FIELDS = frozenset(name for name, info in _INFOS.items() if info.json_schema_extra == _WRITE_ONLY)
"""The attributes, as named in the body, that no log, reply, header or metric may show."""

PUBLIC_FIELDS = frozenset(FIELDS) - SECRET_FIELDS
"""The attributes that may be shown: names, ids, flags, and the endpoint URL without its query."""

PLATFORM_NAME = "ottPlatformName"
ATTRIBUTES = "ottPlatformAttributes"
ENDPOINT_URL = "endpointUrl"
