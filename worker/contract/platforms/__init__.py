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

__all__ = ["PLATFORMS", "SECRET_FIELDS", "Platform"]
