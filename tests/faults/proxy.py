"""A TCP proxy that can be made to misbehave: what stands between a worker and a server goes wrong here."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from yarl import URL

CHUNK = 65536
SLOW_CHUNK = 1400  # bytes; about one packet

EventListener = Callable[[bytes], None]  # is told what passes one way, right before it does
Wire = tuple[
    EventListener, EventListener, Callable[[], None]
]  # from the client, from the server, and the end


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to `host:port`, while its context lasts.

    `latency` is in seconds for each piece that passes, each way. With `tls` it speaks TLS to its clients and
    plain TCP to the server; the context can be replaced at any time, for connections from then on. `listen`
    gives the listeners for a new connection.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        listen: Callable[[], Wire] = lambda: (lambda _: None, lambda _: None, lambda: None),
    ) -> None:
        self.latency = 0.0
        self.refusing = False
        self.accepted = 0
        self._target = (host, port)
        self._tls = tls
        self._listen_to = listen
        self._passing = asyncio.Event()
        self._passing.set()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._broker = URL()

    @classmethod
    def to(cls, url: str, **more: Any) -> Self:
        """Before the broker of this URL; `url` leads through the proxy."""
        at = URL(url)
        proxy = cls(at.host or "localhost", at.port or 5672, **more)
        proxy._broker = at
        return proxy

    @property
    def url(self) -> str:
        """For a proxy that was made by `to`: with user, password and virtual host as they are."""
        return str(self._broker.with_host("127.0.0.1").with_port(self.port))

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._deafen()
        self.cut()
        await asyncio.gather(*(link.ended for link in self._links), return_exceptions=True)

    @property
    def links(self) -> int:
        """Connections that stand."""
        return len(self._links)

    def cut(self) -> None:
        """Close every connection in order: FIN to both sides."""
        for link in list(self._links):
            link.close()

    def reset(self) -> None:
        """Break every connection off: RST to both sides."""
        for link in list(self._links):
            link.reset()

    def half_close(self) -> None:
        """Tell the clients that the server will say no more, while they may go on talking."""
        for link in list(self._links):
            link.half_close()

    def black_hole(self) -> None:
        """Let nothing through; connections stay, new ones are accepted and hear nothing."""
        self._passing.clear()

    def heal(self) -> None:
        """Pass on as usual. What the black hole held back arrives, as TCP's retransmission has it."""
        self.latency = 0.0
        self.refusing = False
        self._passing.set()

    async def present(self, tls: ssl.SSLContext) -> None:
        """Show another certificate; standing connections are closed."""
        self._tls = tls
        await self._deafen()
        self.cut()
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(reader, writer, asyncio.get_running_loop().create_future())
        self._links.add(link)
        try:
            # One whose handshake had begun before `present` has the certificate of then.
            if self.refusing or writer.get_extra_info("sslcontext") is not self._tls:
                link.reset()
                return
            await self._passing.wait()
            there = await asyncio.open_connection(*self._target)
            link.add(*there)
            await self._pass_on(link, there)
        except (OSError, asyncio.IncompleteReadError):
            link.close()  # the server is down: the client learns it from a connection that ends
        finally:
            self._links.discard(link)
            link.close()
            link.ended.set_result(None)

    async def _pass_on(self, link: "_Link", there: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        from_client, from_server, ended = self._listen_to()
        ways = [
            asyncio.create_task(self._pump(link, link.reader, there[1], from_client)),
            asyncio.create_task(self._pump(link, there[0], link.writer, from_server)),
        ]
        link.ways = ways
        await asyncio.wait(ways)
        ended()

    async def _pump(
        self,
        link: "_Link",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        listener: EventListener,
    ) -> None:
        try:
            while data := await reader.read(SLOW_CHUNK if self.latency else CHUNK):
                if self.latency:
                    await asyncio.sleep(self.latency)
                await self._passing.wait()
                listener(data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):
            link.reset()  # one side broke off, as a process that was killed does: the other learns it


@contextlib.asynccontextmanager
async def overheard(url: str) -> AsyncIterator[tuple[str, bytearray]]:
    """Another URL of this HTTP server, and what clients say to it."""
    at, heard = URL(url), bytearray()
    listeners = (heard.extend, lambda _: None, lambda: None)
    async with Proxy(at.host or "", at.port or 80, listen=lambda: listeners) as proxy:
        yield f"http://localhost:{proxy.port}", heard


class _Link:
    """One connection on its way through."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ended: "asyncio.Future[None]"
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.ended = ended
        self.ways: list[asyncio.Task[None]] = []
        self._writers = [writer]

    def add(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    def close(self) -> None:
        self._end()
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        self._end()
        for writer in self._writers:
            connection: socket.socket | None = writer.get_extra_info("socket")
            if connection is not None and connection.fileno() >= 0:
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def half_close(self) -> None:
        if self.ways:
            self.ways[1].cancel()  # what the server still says is lost
            with contextlib.suppress(OSError, RuntimeError):
                self.writer.write_eof()

    def _end(self) -> None:
        for way in self.ways:
            way.cancel()
