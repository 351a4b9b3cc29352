"""What the sandbox remembers: every call in the order of arrival, and the newest registration of each page or
channel."""

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from worker.contract.json_body import to_json
from worker.contract.platforms import ATTRIBUTES, SECRET_FIELDS
from worker.contract.secrets import MASK
from worker.contract.settlement import Resource

SHOWN = (
    *("seq", "arrived_at", "finished_at", "method", "path", "account", "platform", "resource_id", "status"),
    *("in_flight", "fault", "sha256", "body"),
)


@dataclass(slots=True, eq=False)
class Call:
    """One call. Times are seconds since the epoch; `finished_at` and `status` are None until it ends.

    A call that ended without an answer (reset, or given up by the client) has `finished_at` and no
    `status`. `in_flight` counts the calls for the same resource that had not ended when this one came.
    `account` is the one of its token, or for a token call the one asked for. `sha256` is of the body as
    it arrived; `fault` is the kind of the fault that hit it.
    """

    seq: int
    arrived_at: float
    method: str
    path: str
    endpoint: str
    account: str | None = None
    platform: str | None = None
    resource_id: str | None = None
    sha256: str | None = None
    masked: bytes | None = None
    in_flight: int = 0
    fault: str | None = None
    finished_at: float | None = None
    status: int | None = None

    @property
    def resource(self) -> Resource | None:
        """The resource that the call is about, where it names one."""
        return Resource.named(self.account, self.platform, self.resource_id)

    @property
    def body(self) -> dict[str, Any] | None:
        """The body of a registration, with `***` for the values of secret fields; None if unreadable."""
        return json.loads(self.masked) if self.masked else None

    def as_json(self) -> dict[str, Any]:
        """The call as the control endpoint shows it."""
        return {to_camel(name): getattr(self, name) for name in SHOWN}


class History(deque[Call]):
    """The newest calls, oldest first: as many as its `maxlen`."""

    def __init__(self, limit: int) -> None:
        super().__init__(maxlen=limit)
        self._in_flight: Counter[Resource] = Counter()
        self._seq = 0

    @property
    def token_calls(self) -> list[Call]:
        """The calls of `/v2/token`."""
        return [call for call in self if call.endpoint == "token"]

    @property
    def registration_calls(self) -> list[Call]:
        """The calls of `POST /ott/v1/registration`."""
        return [call for call in self if call.endpoint == "registration" and call.method == "POST"]

    def begin(self, method: str, path: str, endpoint: str) -> Call:
        """Numbers a call that has come in."""
        self._seq += 1
        return Call(self._seq, time.time(), method, path, endpoint)

    def keep(self, call: Call) -> None:
        """Adds a call once it is known what it is about."""
        if resource := call.resource:
            call.in_flight = self._in_flight[resource]
            self._in_flight[resource] += 1
        self.append(call)

    def end(self, call: Call, status: int | None) -> None:
        """Notes how a call ended."""
        call.status = status
        call.finished_at = time.time()
        if resource := call.resource:
            self._in_flight[resource] -= 1
            if not self._in_flight[resource]:
                del self._in_flight[resource]


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


class Registry(dict[Resource, Registered]):
    """Everything that is registered, in the order of the first registration. The account of a resource is
    None for the client's own business unit."""

    def upsert(self, resource: Resource, masked: bytes, seq: int) -> None:
        """Registers, overriding what was there."""
        before = self.get(resource)
        self[resource] = Registered(masked, seq, before.updates + 1 if before else 1)

    def as_json(self) -> list[dict[str, Any]]:
        """The registrations as the control endpoint shows them."""
        return [
            {
                "account": account,
                "platform": platform,
                "resourceId": resource_id,
                "seq": entry.seq,
                "updates": entry.updates,
                "body": entry.body,
            }
            for (account, platform, resource_id), entry in self.items()
        ]


def masked(document: Mapping[str, Any]) -> bytes:
    """The JSON of a body with `***` for the values of secret fields."""
    attributes = document.get(ATTRIBUTES)
    if isinstance(attributes, dict):
        shown = {name: MASK if name in SECRET_FIELDS else value for name, value in attributes.items()}
        document = {**document, ATTRIBUTES: shown}
    return to_json(document)
