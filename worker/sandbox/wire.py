"""Answers on the wire, the proper ones and the broken ones."""

import asyncio
import json
import socket
import struct
from http import HTTPStatus

from aiohttp import web

from worker.sandbox.answer import SandboxAnswer
from worker.sandbox.endpoints import CarryOut
from worker.sandbox.faults import Ending, Garbage, Half, Hang, Redirect, Reset, Status, Trickle

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_encode = json.JSONEncoder(ensure_ascii=False).encode


def respond(answer: SandboxAnswer) -> web.Response:
    """A proper response."""
    if answer.document is None:
        return web.Response(status=answer.status, headers=answer.headers or None)
    return web.Response(
        body=_encode(answer.document).encode(errors="replace"),
        status=answer.status,
        headers=answer.headers or None,
        content_type="application/json",
    )


async def misbehave(ending: Ending, request: web.Request, carry_out: CarryOut) -> web.StreamResponse:
    """The effect of a fault on a call.

    A handler is cancelled when its connection is lost; a call that gets no response waits for that.
    """
    answer = carry_out() if ending.applied else SandboxAnswer(503)
    match ending:
        case Status():
            return _error(ending)
        case Garbage():
            return web.Response(
                status=ending.status, body=b"<\xff" * (ending.size // 2), content_type="application/json"
            )
        case Redirect():
            location = ending.location or str(request.rel_url)
            return web.Response(status=ending.status, headers={"Location": location})
        case Reset():
            _reset(request)
        case Half():
            _break_off(request, answer)
        case Trickle():
            await _trickle(request, answer, ending.seconds)
        case Hang():
            pass
    return await _until_lost()


def _error(fault: Status) -> web.Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    if fault.body is not None:
        return web.Response(
            text=fault.body, status=fault.status, headers=headers, content_type=fault.content_type
        )
    document = {"message": fault.message, "errorcode": fault.errorcode, "documentation": ""}
    if fault.body_retry_after is not None:
        document["retryAfter"] = fault.body_retry_after
    return respond(SandboxAnswer(fault.status, document, headers))


def _reset(request: web.Request) -> None:
    if request.transport:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        request.transport.abort()


def _break_off(request: web.Request, answer: SandboxAnswer) -> None:
    if request.transport:
        request.transport.write(_raw(answer, promised=1000) + b'{"half":')
        request.transport.close()


async def _trickle(request: web.Request, answer: SandboxAnswer, seconds: float) -> None:
    for byte in _raw(answer):
        if request.transport:
            request.transport.write(bytes((byte,)))
        await asyncio.sleep(seconds)
    if request.transport:
        request.transport.close()


def _raw(answer: SandboxAnswer, promised: int = 0) -> bytes:
    body = b"" if answer.document is None else _encode(answer.document).encode()
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        "Connection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {max(len(body), promised)}\r\n\r\n"
    )
    return head.encode() + body


async def _until_lost() -> web.StreamResponse:
    response: web.StreamResponse = await asyncio.get_running_loop().create_future()
    return response
