"""The calls that the sandbox remembers."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from worker.contract.json_body import to_json
from worker.contract.platforms import ATTRIBUTES, SECRET_FIELDS
from worker.contract.secrets import MASK
from worker.contract.settlement import Resource


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
    path: str
    endpoint: str
    account: str | None = None
    platform: str | None = None
    resource_id: str | None = None
    sha256: str | None = None
    masked: bytes = b"{}"
    in_flight: int = 0
    fault: str | None = None
    finished_at: float | None = None
    status: int | None = None

    @property
    def resource(self) -> Resource | None:
        """The resource that the call is about, where it names one."""
        return Resource.named(self.account, self.platform, self.resource_id)

    @property
    def body(self) -> dict[str, Any]:
        """The body of a registration, with `***` for the values of secret fields; empty if unreadable."""
        body: dict[str, Any] = json.loads(self.masked)
        return body

    def as_json(self) -> dict[str, Any]:
        """The call as the control endpoint shows it."""
        shown = asdict(self) | {"body": self.body}
        del shown["masked"]
        return {to_camel(name): value for name, value in shown.items()}


class History(deque[Call]):
    """The newest calls, oldest first: as many as its `maxlen`."""

    @property
    def token_calls(self) -> list[Call]:
        """The calls of `/v2/token`."""
        return [call for call in self if call.endpoint == "token"]

    @property
    def registration_calls(self) -> list[Call]:
        """The calls of `POST /ott/v1/registration`."""
        return [call for call in self if call.endpoint == "registration"]


def masked(document: Mapping[str, Any]) -> bytes:
    """The JSON of a body with `***` for the values of secret fields."""
    attributes = document.get(ATTRIBUTES)
    if isinstance(attributes, dict):
        shown = {name: MASK if name in SECRET_FIELDS else value for name, value in attributes.items()}
        document = {**document, ATTRIBUTES: shown}
    return to_json(document)
