"""A stand-in for Marketing Cloud that costs next to nothing: it answers the token endpoint, and whatever else
is POSTed after a while."""

import asyncio
import ctypes
from typing import Any

import uvloop

TOKEN = b'{"access_token":"benchmark","expires_in":100000,"token_type":"Bearer"}'
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection of the contender; requests may be pipelined."""

    def __init__(self, count: ctypes.c_uint64, latency: float) -> None:
        self._count = count
        self._latency = latency
        self._buffer = b""

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at < 0:
                raise SystemExit("the upstream wants a Content-Length")
            size = int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(buffer) < end + 4 + size:
                break
            buffer = buffer[end + 4 + size :]
            self._answer(head)
        self._buffer = buffer

    def _answer(self, head: bytes) -> None:
        if b"/v2/token" in head:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(TOKEN), TOKEN))
        elif self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._created)
        else:
            self._created()

    def _created(self) -> None:
        self._count.value += 1
        if not self._transport.is_closing():
            self._transport.write(CREATED)


def serve(port: Any, count: ctypes.c_uint64, latency: float) -> None:
    """Put the free port that it listens on into `port`, and keep the number of registrations in `count`."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(count, latency), "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())
