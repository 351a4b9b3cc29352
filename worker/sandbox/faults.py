"""The sandbox's record of calls, its error answers, and faults on request."""

import asyncio
import json
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from worker.contract.json_body import to_json
from worker.contract.platforms import ATTRIBUTES, SECRET_FIELDS
from worker.contract.secrets import MASK
from worker.contract.settlement import Resource

CarryOut = Callable[[], web.Response]
"""Executes the call and returns its answer."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Seconds = Annotated[float, Field(ge=0, le=86_400)]


def json_answer(
    status: int, document: Mapping[str, Any] | Sequence[Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON answer."""
    return web.Response(
        body=to_json(document), status=status, headers=headers, content_type="application/json"
    )


def rest_error(
    status: int, message: str, errorcode: int = 0, headers: Mapping[str, str] | None = None, **more: Any
) -> web.Response:
    """An error of the REST API."""
    document = {"message": message, "errorcode": errorcode, "documentation": "", **more}
    return json_answer(status, document, headers)


@dataclass(slots=True, eq=False)
class Call:
    """One call. Times are seconds since the epoch; `finished_at` and `status` are None until it ends.

    A call that ended without an answer (reset, or abandoned by the client) has `finished_at` and no `status`.
    `in_flight` counts the unfinished calls for the same resource when it arrived. `account` is that of its
    token, or for a token call the requested one. `sha256` is of the body as it arrived; `fault` is the kind
    of the fault that hit it."""

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
        """The call's resource, if it has one."""
        return Resource.named(self.account, self.platform, self.resource_id)

    @property
    def body(self) -> dict[str, Any]:
        """The body of a registration, with `***` for the values of secret fields; empty if unreadable."""
        body: dict[str, Any] = json.loads(self.masked)
        return body

    def as_json(self) -> dict[str, Any]:
        """The call as a JSON document."""
        shown = asdict(self) | {"body": self.body}
        del shown["masked"]
        return {to_camel(name): value for name, value in shown.items()}


class History(deque[Call]):
    """The newest `maxlen` calls, oldest first."""

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


class Fault(BaseModel):
    """A fault, and the calls that it hits: all that match, only `count` of them, or a share of `rate`.

    `path` is the token or the registration endpoint; None means both. Of several faults that hit a call, the
    first decides the answer; latencies add up.

    - `latency`: the call waits `seconds`, or a random time between that and `up_to`.
    - `status`: an error, a redirect or any other answer. `retry_after` is the header (seconds or a date),
      `body_retry_after` the body's hint, `location` the target of a redirect. `body` replaces the JSON error
      body by any text, of any `content_type`.
    - `hang`: no answer; the connection stays open until the client closes it.
    - `reset`: the connection is reset instead of an answer.
    - `half`: the request is executed, its answer is cut off in the middle, and the connection closes.
    - `short_token`: the token expires after `seconds`, although its `expires_in` is longer.

    With `applied` the request is executed although it gets no answer, or an error."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", allow_inf_nan=False
    )

    kind: Literal["latency", "status", "hang", "reset", "half", "short_token"]
    path: Literal["token", "registration"] | None = None
    account: str | None = None
    resource_id: str | None = None
    count: Annotated[int, Field(gt=0)] | None = None
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    hits: int = 0
    seconds: Seconds = 0.0
    up_to: Seconds | None = None
    applied: bool = False
    status: Annotated[int, Field(ge=200, le=599)] = 503
    message: str = "Requested by the sandbox's faults"
    errorcode: int = 0
    retry_after: int | float | str | None = None
    body_retry_after: float | None = None
    location: str | None = None
    body: str | None = None
    content_type: str = "text/plain"

    async def answer(self, request: web.Request, carry_out: CarryOut) -> web.StreamResponse:
        """The answer of the call. A call without an answer waits until its connection is lost, which cancels
        the handler."""
        answer = carry_out() if self.applied or self.kind == "half" else None
        if self.kind == "status":
            return self._error()
        if (transport := request.transport) is not None:
            if self.kind == "reset":
                connection = transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                transport.abort()
            elif answer is not None and self.kind == "half":
                head = f"HTTP/1.1 {answer.status} {answer.reason}\r\nConnection: close\r\n"
                transport.write(f'{head}Content-Length: 1000\r\n\r\n{{"half":'.encode())
                transport.close()
        response: web.StreamResponse = await asyncio.get_running_loop().create_future()
        return response

    def _error(self) -> web.Response:
        hints = {"Retry-After": self.retry_after, "Location": self.location}
        headers = {name: str(value) for name, value in hints.items() if value is not None}
        if self.body is not None:
            return web.Response(
                text=self.body, status=self.status, headers=headers, content_type=self.content_type
            )
        more = {} if self.body_retry_after is None else {"retryAfter": self.body_retry_after}
        return rest_error(self.status, self.message, self.errorcode, headers, **more)


FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])


class Faults(list[Fault]):
    """The faults in force, oldest first. `seed` makes rates and ranges repeatable."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)  # noqa: S311

    def add(self, *faults: Fault) -> None:
        """Add faults. Each is removed when its `count` is used up."""
        self += [fault.model_copy() for fault in faults]

    def as_json(self) -> list[dict[str, Any]]:
        """The faults in force, with their numbers of hits."""
        return [
            fault.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"hits": fault.hits}
            for fault in self
        ]

    def delay(self, call: Call) -> float:
        """The call's latency in seconds."""
        hits = self.hits(call, "latency")
        return sum(self._random.uniform(hit.seconds, hit.up_to or hit.seconds) for hit in hits)

    def hits(self, call: Call, *kinds: str) -> Iterator[Fault]:
        """The faults of these kinds that hit the call. Each hit is counted when it is yielded."""
        about = {"path": call.endpoint, "account": call.account, "resource_id": call.resource_id}
        for fault in tuple(self):
            matches = all(getattr(fault, name) in (None, value) for name, value in about.items())
            if fault.kind not in kinds or not matches or self._random.random() >= fault.rate:
                continue
            fault.hits += 1
            if fault.hits == fault.count:
                self.remove(fault)
            yield fault
