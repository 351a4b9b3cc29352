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

SECRET_FIELDS: frozenset[str] = frozenset().union(*(platform.secrets for platform in PLATFORMS.values()))
"""The attributes, as named in the body, that no log, reply, header or metric may ever show."""

PUBLIC_FIELDS: frozenset[str] = frozenset(
    name for platform in PLATFORMS.values() for name in platform.fields if name not in SECRET_FIELDS
)
"""The attributes that may be shown: names, ids, flags, and the endpoint URL without its query."""

PLATFORM_NAME = "ottPlatformName"
ATTRIBUTES = "ottPlatformAttributes"
ENDPOINT_URL = "endpointUrl"

__all__ = [
    "ATTRIBUTES",
    "ENDPOINT_URL",
    "PLATFORMS",
    "PLATFORM_NAME",
    "PUBLIC_FIELDS",
    "SECRET_FIELDS",
    "Platform",
]
