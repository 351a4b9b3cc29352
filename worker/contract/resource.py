"""The resource that a registration overrides."""

from typing import NamedTuple


class Resource(NamedTuple):
    """A page or channel of one account; its requests are forwarded one at a time (contract §2)."""

    account: str | None
    platform: str
    id: str
