"""The OTT platforms that can be registered: one file and one row each."""

from collections.abc import Mapping
from types import MappingProxyType

from worker.contract.platforms.line import LineAttributes
from worker.contract.platforms.messenger import MessengerAttributes
from worker.contract.platforms.platform import Platform

PLATFORMS: Mapping[str, Platform] = MappingProxyType(
    {
        platform.name: platform
        for platform in (
            Platform("messenger", MessengerAttributes, id_field="pageId"),
            Platform("line", LineAttributes, id_field="channelId"),
        )
    }
)
"""Every known platform by its `ottPlatformName`."""

FIELDS = tuple(dict.fromkeys(name for platform in PLATFORMS.values() for name in platform.fields))
"""The attributes of all platforms, as named in the body."""

FLAG_FIELDS: frozenset[str] = frozenset().union(*(platform.flags for platform in PLATFORMS.values()))
ID_FIELDS: frozenset[str] = frozenset(name for name in FIELDS if name.endswith("Id"))
NAME_FIELDS: frozenset[str] = frozenset(platform.name_field for platform in PLATFORMS.values())

SECRET_FIELDS: frozenset[str] = frozenset().union(*(platform.secrets for platform in PLATFORMS.values()))
"""The attributes, as named in the body, that no log, reply, header or metric may ever show."""

PUBLIC_FIELDS: frozenset[str] = frozenset(name for name in FIELDS if name not in SECRET_FIELDS)
"""The attributes that may be shown: names, ids, flags, and the endpoint URL without its query."""

PLATFORM_NAME = "ottPlatformName"
ATTRIBUTES = "ottPlatformAttributes"
ENDPOINT_URL = "endpointUrl"

__all__ = [
    "ATTRIBUTES",
    "ENDPOINT_URL",
    "FIELDS",
    "FLAG_FIELDS",
    "ID_FIELDS",
    "NAME_FIELDS",
    "PLATFORMS",
    "PLATFORM_NAME",
    "PUBLIC_FIELDS",
    "SECRET_FIELDS",
    "Platform",
]
