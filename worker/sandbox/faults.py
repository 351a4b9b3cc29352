"""Faults on request: their kinds, the calls that they hit, how often, and what happens then."""

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from worker.sandbox.answers import rest_error
from worker.sandbox.records import Call

CarryOut = Callable[[], web.Response]
"""Carries out the call and returns its answer."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Seconds = Annotated[float, Field(ge=0, le=86_400)]


class Fault(BaseModel):
    """The calls that a fault hits: all that match, or only `count` of them, or a share of `rate`.

    `path` is the token or the registration endpoint; nothing given means any. The first fault added that
    hits a call decides its answer; latencies add up.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, allow_inf_nan=False
    )

    path: Literal["token", "registration"] | None = None
    account: str | None = None
    platform: str | None = None
    resource_id: str | None = None
    count: Annotated[int, Field(gt=0)] | None = None
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0

    def matches(self, call: Call) -> bool:
        """Whether the fault is about this call at all."""
        return (
            self.path in (None, call.endpoint)
            and self.account in (None, call.account)
            and self.platform in (None, call.platform)
            and self.resource_id in (None, call.resource_id)
        )


class Ending(Fault):
    """A fault of the answer; with `applied` the request is carried out all the same."""

    kind: str
    applied: bool = False

    async def answer(self, request: web.Request, carry_out: CarryOut) -> web.StreamResponse:
        """The effect on a call. A handler is cancelled when its connection is lost: a call that gets no
        response waits for that."""
        answer = carry_out() if self.applied else web.Response(status=503)
        if request.transport is not None:
            self.disturb(request.transport, answer)
        response: web.StreamResponse = await asyncio.get_running_loop().create_future()
        return response

    def disturb(self, transport: asyncio.Transport, answer: web.Response) -> None:
        """What happens to the connection."""


class Latency(Fault):
    """The call waits `seconds` before it is carried out, or a random time between that and `up_to`."""

    kind: Literal["latency"] = "latency"
    seconds: Seconds
    up_to: Seconds | None = None


class Status(Ending):
    """An error answer, a redirect or any other answer.

    `retry_after` is the header (seconds or a date), `body_retry_after` the body's hint, `location` where a
    redirect leads. `body` replaces the JSON error body by any text, of any `content_type`.
    """

    kind: Literal["status"] = "status"
    status: Annotated[int, Field(ge=200, le=599)]
    message: str = "Asked for by the sandbox's faults"
    errorcode: int = 0
    retry_after: int | float | str | None = None
    body_retry_after: float | None = None
    location: str | None = None
    body: str | None = None
    content_type: str = "text/plain"

    async def answer(self, request: web.Request, carry_out: CarryOut) -> web.StreamResponse:
        if self.applied:
            carry_out()
        given = {"Retry-After": self.retry_after, "Location": self.location}
        headers = {name: str(value) for name, value in given.items() if value is not None}
        if self.body is not None:
            return web.Response(
                text=self.body, status=self.status, headers=headers, content_type=self.content_type
            )
        more = {} if self.body_retry_after is None else {"retryAfter": self.body_retry_after}
        return rest_error(self.status, self.message, self.errorcode, headers, **more)


class Hang(Ending):
    """No answer at all; the connection stays open until the client gives up."""

    kind: Literal["hang"] = "hang"


class Reset(Ending):
    """The connection is reset instead of an answer."""

    kind: Literal["reset"] = "reset"

    def disturb(self, transport: asyncio.Transport, answer: web.Response) -> None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


class Half(Ending):
    """The answer breaks off in the middle and the connection closes."""

    kind: Literal["half"] = "half"
    applied: bool = True

    def disturb(self, transport: asyncio.Transport, answer: web.Response) -> None:
        head = (
            f"HTTP/1.1 {answer.status} {answer.reason}\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n"
        )
        transport.write(head.encode() + b'{"half":')
        transport.close()


class ShortToken(Fault):
    """A token that ends after `seconds`, although its `expires_in` says otherwise."""

    kind: Literal["short_token"] = "short_token"
    seconds: Seconds


AnyFault = Latency | Status | Hang | Reset | Half | ShortToken

FAULTS: TypeAdapter[list[AnyFault]] = TypeAdapter(list[Annotated[AnyFault, Field(discriminator="kind")]])

Kind = TypeVar("Kind", bound=Fault)


class Faults:
    """The faults in force, oldest first. `seed` makes rates and ranges repeatable."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._faults: list[_InForce] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter([entry.fault for entry in self._faults])

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, *faults: AnyFault) -> None:
        """Puts faults in force; each is gone once its `count` is used up."""
        self._faults += [_InForce(fault) for fault in faults]

    def heal(self) -> None:
        """Ends all faults. Calls that hang keep hanging until their client gives up."""
        self._faults.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """The faults in force, with the number of calls that each has hit."""
        return [
            entry.fault.model_dump(mode="json", by_alias=True, exclude_none=True) | {"hits": entry.hits}
            for entry in self._faults
        ]

    def delay(self, call: Call) -> float:
        """Seconds that the call has to wait."""
        hits = self._hits(call, Latency)
        return sum(self._random.uniform(hit.seconds, hit.up_to or hit.seconds) for hit in hits)

    def hit(self, call: Call, kind: type[Kind]) -> Kind | None:
        """The first fault of this kind that hits the call."""
        return next(self._hits(call, kind), None)

    def _hits(self, call: Call, kind: type[Kind]) -> Iterator[Kind]:
        for entry in tuple(self._faults):
            fault = entry.fault
            if not isinstance(fault, kind) or not fault.matches(call):
                continue
            if fault.rate < 1 and self._random.random() >= fault.rate:
                continue
            entry.hits += 1
            if entry.hits == fault.count:
                self._faults.remove(entry)
            yield fault


@dataclass(slots=True, eq=False)
class _InForce:
    fault: Fault
    hits: int = 0
