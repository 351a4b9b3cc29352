"""The registrations: the latest one of each account, platform and id."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.contract.platforms import SECRET_FIELDS

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Key(NamedTuple):
    """One resource. `account` is None for the client's own business unit."""

    account: str | None
    platform: str
    resource_id: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The state of one resource: its newest body, the call that brought it, and how many there were."""

    masked: bytes
    seq: int
    updates: int

    @property
    def body(self) -> dict[str, Any]:
        """The newest body, with `***` for the values of secret fields."""
        body: dict[str, Any] = json.loads(self.masked)
        return body


class Registry(Mapping[Key, Registered]):
    """Everything that is registered, in the order of the first registration."""

    def __init__(self) -> None:
        self._entries: dict[Key, Registered] = {}

    def __getitem__(self, key: Key) -> Registered:
        return self._entries[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def upsert(self, key: Key, masked: bytes, seq: int) -> None:
        """Registers, overriding what was there."""
        before = self._entries.get(key)
        self._entries[key] = Registered(masked, seq, before.updates + 1 if before else 1)

    def as_json(self) -> list[dict[str, Any]]:
        """The registrations as the control endpoint shows them."""
        return [
            {
                "account": key.account,
                "platform": key.platform,
                "resourceId": key.resource_id,
                "seq": entry.seq,
                "updates": entry.updates,
                "body": entry.body,
            }
            for key, entry in self._entries.items()
        ]

    def clear(self) -> None:
        """Forgets every registration."""
        self._entries.clear()


def masked(document: Mapping[str, Any]) -> bytes:
    """The JSON of a body with `***` for the values of secret fields."""
    attributes = document.get("ottPlatformAttributes")
    if isinstance(attributes, dict):
        shown = {name: "***" if name in SECRET_FIELDS else value for name, value in attributes.items()}
        document = {**document, "ottPlatformAttributes": shown}
    return _encode(document).encode()
