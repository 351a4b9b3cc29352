"""A stand-in for Marketing Cloud that costs next to nothing: `python upstream.py COUNT_FILE LATENCY`.

It answers the token endpoint and whatever else is POSTed, after LATENCY seconds, on a free port that it
prints. The number of registrations is kept in COUNT_FILE (8 bytes, little endian), where the
benchmark reads it without asking.
"""

import asyncio
import mmap
import struct
import sys
from pathlib import Path

import uvloop

TOKEN = b'{"access_token":"benchmark","expires_in":100000,"token_type":"Bearer"}'
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
COUNT = struct.Struct("<Q")


class Upstream(asyncio.Protocol):
    """One connection of the contender; requests may be pipelined."""

    def __init__(self, count: mmap.mmap, latency: float) -> None:
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
            length = str(len(TOKEN)).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + TOKEN)
        elif self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._created)
        else:
            self._created()

    def _created(self) -> None:
        (done,) = COUNT.unpack_from(self._count)
        COUNT.pack_into(self._count, 0, done + 1)
        if not self._transport.is_closing():
            self._transport.write(CREATED)


async def serve(count_file: str, latency: float) -> None:
    with Path(count_file).open("r+b") as file:
        count = mmap.mmap(file.fileno(), COUNT.size)
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(count, latency), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2])))
