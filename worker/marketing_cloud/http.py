"""HTTP for Marketing Cloud: kept connections, no cookies, no redirects, bounded answers, plain failures.

It uses aiohttp's connector (pool, TLS, proxies, host names) and not its sessions. A session builds each
request anew from many options, which costs about 100 µs more CPU a call. Here the head of a request is built
once and sent many times. `response.py` reads the responses: a malformed body never hides an answer.
"""

import asyncio
import errno
import json
import os
import resource
import select
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from worker.errors import UsageError
from worker.marketing_cloud.proxy import Proxy, check_proxies, proxy_for
from worker.marketing_cloud.response import Response, ResponseReader
from worker.settings import Settings

IDLE_TIMEOUT = 30.0  # seconds that an idle connection is kept
BODY_TIMEOUT = 5.0  # seconds for the rest of a body: the head has told what matters
# Seconds for which the peer's kernel may leave sent data unacknowledged. This ends a connection that a
# firewall has forgotten, long before the time-out of the call.
SILENT_PEER_TIMEOUT = 10.0
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
SHORTAGE_PAUSE = 0.5  # seconds
TLS_CHECK_INTERVAL = 1.0  # seconds between looks at the files of the TLS context
OTHERS = 224  # descriptors that calls leave: connections to the broker, the admin server, files
MOST_CALLS = 60_000  # at a time, to one address
_LENGTH = b"Content-Length: "

EnsureLease = Callable[[], Awaitable[None]]


class NoAnswer(Exception):
    """The call ended without an answer. Its text holds nothing of the request."""


class _Stale(Exception):
    """A kept connection failed before an answer began."""


@dataclass(slots=True)
class HttpEndpoint:
    """The target of a request and its head, up to the value of Content-Length. It may hold a token."""

    target: aiohttp.ClientRequest
    head: bytes
    proxy: Proxy | None
    renewed: Callable[[], aiohttp.ClientRequest]  # the target, with the certificates of this moment

    def __repr__(self) -> str:
        return "HttpEndpoint(***)"

    def plus(self, headers: Mapping[str, str]) -> "HttpEndpoint":
        """The same with more headers; one that would not be a header line is left out."""
        sound = {k: v for k, v in headers.items() if v.isascii() and v.isprintable()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sound.items())
        return replace(self, head=self.head.removesuffix(_LENGTH) + lines.encode("ascii") + _LENGTH)


class Http:
    """POSTs JSON. One pool of connections for all calls; the caller closes it. Raises SettingsError if the
    environment names an invalid proxy, and UsageError for an unsupported aiohttp."""

    def __init__(self, settings: Settings, on_shortage: Callable[[str], None] = lambda _: None) -> None:
        """`on_shortage` is told when this process has no descriptor left for a call."""
        _check_aiohttp()
        self._on_shortage = on_shortage
        self._timeout = settings.http_timeout
        self._connecting = aiohttp.ClientTimeout(connect=self._timeout)
        self._loop = asyncio.get_running_loop()
        check_proxies(settings)
        self._settings = settings
        self._tls = settings.tls("mc")
        self._tls_checked_at = self._loop.time()
        self._connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=IDLE_TIMEOUT, socket_factory=self._socket
        )
        self._slots = asyncio.Semaphore(_descriptors_for_calls())
        self._used: WeakSet[ResponseHandler] = WeakSet()  # connections that have served a call
        self._distrusts_idle = False  # a kept connection brought no byte in time

    async def close(self) -> None:
        """Close all connections at once."""
        await self._connector.close()

    def endpoint(self, url: str, headers: Mapping[str, str]) -> HttpEndpoint:
        """Prepare POSTs to `url`, through the proxy that the environment names for it, if any."""
        where = URL(url)
        proxy = proxy_for(where)
        host = {"Host": where.host_port_subcomponent or ""}
        to_proxy = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else {}

        def target() -> aiohttp.ClientRequest:
            return aiohttp.ClientRequest(
                "POST",
                where,
                loop=self._loop,
                ssl=self._tls,
                proxy=proxy.url if proxy else None,
                proxy_headers={
                    **host,
                    **to_proxy,
                },  # the connector adds Host itself, but then keeps two pools
            )

        fields = {**host, "Accept-Encoding": "identity", **headers}
        path = where.raw_path_qs
        if proxy is not None and where.scheme == "http":
            path = str(where)
            fields |= to_proxy
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        head = "\r\n".join([*lines, ""]).encode("ascii") + _LENGTH
        return HttpEndpoint(target(), head, proxy, target)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """`send` to an endpoint that is used once."""
        return await self.send(self.endpoint(url, headers), body)

    async def send(
        self, endpoint: HttpEndpoint, body: bytes, ensure_lease: EnsureLease | None = None
    ) -> Response:
        """POST and return the response. `ensure_lease` is awaited when the connection stands, right before
        the request is written. Where a kept connection fails before an answer begins, both are done once more
        on a fresh connection. Waits where this process has no descriptor left. Raises NoAnswer."""
        while True:
            try:
                async with self._slots:
                    try:
                        response = await self._exchange(endpoint, body, ensure_lease)
                    except _Stale:
                        response = await self._exchange(endpoint, body, ensure_lease, fresh=True)
                break
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                number = error.errno if isinstance(error, OSError) else None
                if number not in NO_DESCRIPTOR:
                    raise NoAnswer(self._explain(error, endpoint.proxy)) from None
                # This worker's own trouble says nothing about Marketing Cloud.
                self._on_shortage(os.strerror(number or 0))
                await asyncio.sleep(SHORTAGE_PAUSE)
        if response.status == 407 and endpoint.proxy is not None:
            raise NoAnswer(_refused_by(endpoint.proxy, 407))
        return response

    async def _exchange(
        self, endpoint: HttpEndpoint, body: bytes, ensure_lease: EnsureLease | None, *, fresh: bool = False
    ) -> Response:
        deadline = self._loop.time() + self._timeout
        connection, is_reused = await self._connect(endpoint, fresh=fresh)
        try:
            if ensure_lease is not None:
                before = self._loop.time()
                await ensure_lease()
                deadline += self._loop.time() - before
            reader = await self._ask(connection, endpoint, body, deadline, is_reused=is_reused)
        except BaseException as error:
            connection.close()
            self._distrusts_idle |= is_reused and isinstance(error, TimeoutError)
            raise
        protocol, transport = connection.protocol, connection.transport
        is_sent = transport is not None and not transport.get_write_buffer_size()
        if protocol is not None and is_sent and reader.keeps_connection:
            protocol.set_parser(None, None)
            connection.release()
        else:
            connection.close()
        return reader.response

    async def _ask(
        self, connection: Connection, endpoint: HttpEndpoint, body: bytes, deadline: float, *, is_reused: bool
    ) -> ResponseReader:
        """Write the request and read until there is a response."""
        protocol, transport = connection.protocol, connection.transport
        stale = _Stale if is_reused else aiohttp.ServerDisconnectedError
        if protocol is None or transport is None or transport.is_closing():
            raise stale
        # Bytes that came before the request was written do not answer it.
        if protocol.should_close or (is_reused and _has_news(transport)):
            raise stale
        answer = _Answer(self._loop, deadline)
        protocol.set_parser(answer, None)
        transport.write(b"%b%d\r\n\r\n%b" % (endpoint.head, len(body), body))
        reader = await answer.received()
        if not reader.has_head:
            raise aiohttp.ServerDisconnectedError if reader.has_begun else stale
        return reader

    async def _connect(self, endpoint: HttpEndpoint, *, fresh: bool) -> tuple[Connection, bool]:
        """A connection, and whether it has served a call before. For a `fresh` one all idle connections to
        the same host are closed: the others have most likely failed too."""
        fresh, self._distrusts_idle = fresh or self._distrusts_idle, False
        now = self._loop.time()
        if now - self._tls_checked_at >= TLS_CHECK_INTERVAL:
            self._tls, self._tls_checked_at = self._settings.tls("mc"), now
        if endpoint.target.ssl is not self._tls:
            endpoint.target = endpoint.renewed()
        while True:
            connection = await self._connector.connect(endpoint.target, [], self._connecting)
            protocol = connection.protocol
            if protocol is None or protocol not in self._used:
                if protocol is not None:
                    self._used.add(protocol)
                return connection, False
            if not fresh and not protocol.should_close:
                return connection, True
            connection.close()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family=family, type=kind, proto=protocol)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            longest = min(SILENT_PEER_TIMEOUT, self._timeout / 2)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(longest * 1000))
        return made

    def _explain(self, error: Exception, proxy: Proxy | None) -> str:  # noqa: PLR0911 - one line for each error
        match error:
            case aiohttp.ClientHttpProxyError() if proxy is not None:
                return _refused_by(proxy, error.status)
            case aiohttp.ClientProxyConnectionError() if proxy is not None:
                return f"the proxy of {proxy.variable} cannot be reached ({_reason(error)})"
            case aiohttp.ClientConnectorCertificateError():
                return f"the TLS certificate was not accepted ({_verification(error)})"
            case aiohttp.ClientSSLError():
                return "no TLS connection could be made: check that the port speaks TLS"
            case aiohttp.ClientConnectorDNSError():
                return "the host name could not be resolved"
            case aiohttp.ClientConnectorError():
                return f"the connection was refused ({_reason(error)})"
            case aiohttp.InvalidURL():
                return "the URL's host is no name and no address"
            case TimeoutError():
                return f"no answer within {self._timeout:g} s"
        return "the connection was lost before the answer was complete"


class _Answer:
    """Waits for one response. aiohttp's protocol hands it what the connection brings."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self._loop = loop
        self._reader = ResponseReader()
        self._received: asyncio.Future[ResponseReader] = loop.create_future()
        self._expiry = loop.call_at(deadline, self._expire)

    async def received(self) -> ResponseReader:
        """The reader, when the response is whole or nothing more of it comes. Raises TimeoutError where the
        head does not come in time."""
        try:
            return await self._received
        finally:
            self._expiry.cancel()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        reader = self._reader
        had_head = reader.has_head
        reader.feed(data)
        if reader.is_done:
            self._finish()
        elif reader.has_head and not had_head:
            soon = self._loop.time() + BODY_TIMEOUT
            if soon < self._expiry.when():
                self._expiry.cancel()
                self._expiry = self._loop.call_at(soon, self._expire)
        return False, b""

    def feed_eof(self) -> None:
        self._reader.end()
        self._finish()

    def _finish(self) -> None:
        if not self._received.done():
            self._received.set_result(self._reader)

    def _expire(self) -> None:
        if self._reader.has_head:
            self.feed_eof()
        elif not self._received.done():
            self._received.set_exception(TimeoutError())


def to_json(document: Mapping[str, object]) -> bytes:
    """Encode a JSON object."""
    return json.dumps(document).encode()


def _has_news(transport: asyncio.Transport) -> bool:
    """Whether something has come on an idle connection that the event loop has not read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _refused_by(proxy: Proxy, status: int) -> str:
    hint = ": give it a user and password as http://USER:PASSWORD@HOST:PORT" if status == 407 else ""
    return f"the proxy of {proxy.variable} answered {status}{hint}"


def _reason(error: aiohttp.ClientConnectorError) -> str:
    return os.strerror(error.errno) if error.errno else "no address answered"


def _verification(error: aiohttp.ClientConnectorCertificateError) -> str:
    return str(getattr(error.certificate_error, "verify_message", "") or "it could not be verified")


def _descriptors_for_calls() -> int:
    """Calls at a time, so that some descriptors are left for the broker and the admin server."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CALLS if soft == resource.RLIM_INFINITY else max(16, min(MOST_CALLS, soft - OTHERS))


def _check_aiohttp() -> None:
    """Raise UsageError where aiohttp lacks what this module uses below aiohttp's sessions."""
    needed = {
        aiohttp.TCPConnector: ("connect", "close"),
        Connection: ("protocol", "transport", "release", "close"),
        ResponseHandler: ("set_parser", "should_close"),
        aiohttp.ClientRequest: ("ssl",),
    }
    missing = [
        f"{kind.__name__}.{name}"
        for kind, names in needed.items()
        for name in names
        if not hasattr(kind, name)
    ]
    if missing:
        raise UsageError(
            f"aiohttp {aiohttp.__version__} lacks {', '.join(missing)}: "
            "install aiohttp 3.14, with which this worker was tested"
        )
