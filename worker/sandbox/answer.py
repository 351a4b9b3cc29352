"""Answers as plain data, the error bodies of Marketing Cloud, and both on the wire, proper or broken."""

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from worker.contract.json_body import to_json
from worker.contract.registration import FieldError
from worker.sandbox.faults import Ending, Half, Reset, Status

NO_STORE = {"Cache-Control": "no-store"}
TOKEN_ERRORS = "https://developer.salesforce.com/docs"  # noqa: S105 - the error_uri that the real one sends
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class SandboxAnswer:
    """A response as plain data; `document` becomes its JSON body, None an empty one."""

    status: int
    document: Mapping[str, Any] | Sequence[Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The JSON body, or nothing."""
        return b"" if self.document is None else to_json(self.document)


CarryOut = Callable[[], SandboxAnswer]
"""Carries out the call and returns its answer."""


def token_error(status: int, error: str, description: str) -> SandboxAnswer:
    """An OAuth 2.0 error, as `/v2/token` words it."""
    return SandboxAnswer(
        status, {"error": error, "error_description": description, "error_uri": TOKEN_ERRORS}, NO_STORE
    )


def rest_error(status: int, message: str, errorcode: int = 0) -> SandboxAnswer:
    """A single error of the REST API."""
    return SandboxAnswer(status, {"message": message, "errorcode": errorcode, "documentation": ""})


def validation_error(message: str, errorcode: int, errors: Sequence[FieldError] = ()) -> SandboxAnswer:
    """The 400 of the registration endpoint, as the API document prints it."""
    document = {
        "message": message,
        "errorcode": errorcode,
        "documentation": "",
        "validationErrors": [error._asdict() for error in errors],
    }
    return SandboxAnswer(400, document)


NOT_AUTHORIZED = rest_error(401, "Not Authorized", 40004)
INSUFFICIENT_SCOPE = rest_error(403, "Insufficient Privileges", 20001)
NO_SUCH_SERVICE = rest_error(596, "Service Not Found")  # the gateway before the REST API says so
UNSUPPORTED_MEDIA_TYPE = rest_error(415, "Unsupported Media Type")


def respond(answer: SandboxAnswer) -> web.Response:
    """A proper response."""
    content_type = None if answer.document is None else "application/json"
    return web.Response(
        body=answer.body or None, status=answer.status, headers=answer.headers, content_type=content_type
    )


async def misbehave(ending: Ending, request: web.Request, carry_out: CarryOut) -> web.StreamResponse:
    """The effect of a fault on a call.

    A handler is cancelled when its connection is lost; a call that gets no response waits for that.
    """
    answer = carry_out() if ending.applied else SandboxAnswer(503)
    if isinstance(ending, Status):
        return _error(ending)
    if request.transport and isinstance(ending, Reset):
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        request.transport.abort()
    if request.transport and isinstance(ending, Half):
        request.transport.write(_first_half(answer))
        request.transport.close()
    response: web.StreamResponse = await asyncio.get_running_loop().create_future()
    return response


def _error(fault: Status) -> web.Response:
    given = {"Retry-After": fault.retry_after, "Location": fault.location}
    headers = {name: str(value) for name, value in given.items() if value is not None}
    if fault.body is not None:
        return web.Response(
            text=fault.body, status=fault.status, headers=headers, content_type=fault.content_type
        )
    document = {"message": fault.message, "errorcode": fault.errorcode, "documentation": ""}
    if fault.body_retry_after is not None:
        document["retryAfter"] = fault.body_retry_after
    return respond(SandboxAnswer(fault.status, document, headers))


def _first_half(answer: SandboxAnswer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        "Connection: close\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    return head.encode() + answer.body + b'{"half":'
