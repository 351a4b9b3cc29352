"""Every call in the order of arrival, so that tests and people see what came when."""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from worker.sandbox.registry import Key

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
    def key(self) -> Key | None:
        """The resource that the call is about, where it names one."""
        if self.platform is None or self.resource_id is None:
            return None
        return Key(self.account, self.platform, self.resource_id)

    @property
    def body(self) -> dict[str, Any] | None:
        """The body of a registration, with `***` for the values of secret fields; None if unreadable."""
        return json.loads(self.masked) if self.masked else None

    def as_json(self) -> dict[str, Any]:
        """The call as the control endpoint shows it."""
        return {to_camel(name): getattr(self, name) for name in SHOWN}


class History:
    """The newest `limit` calls, oldest first."""

    def __init__(self, limit: int) -> None:
        self._calls: deque[Call] = deque(maxlen=limit)
        self._in_flight: Counter[Key] = Counter()
        self._seq = 0

    def __getitem__(self, index: int) -> Call:
        return self._calls[index]

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

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
        if key := call.key:
            call.in_flight = self._in_flight[key]
            self._in_flight[key] += 1
        self._calls.append(call)

    def end(self, call: Call, status: int | None) -> None:
        """Notes how a call ended."""
        call.status = status
        call.finished_at = time.time()
        if key := call.key:
            self._in_flight[key] -= 1
            if not self._in_flight[key]:
                del self._in_flight[key]

    def clear(self) -> None:
        """Forgets the calls; numbers go on."""
        self._calls.clear()
