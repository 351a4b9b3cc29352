"""HTTP for Marketing Cloud: no cookies, no redirects, bounded answers, plain errors.

aiohttp's session requests tokens (`Http.post`). Registrations use our own exchange (`Http.send`), on
connections that aiohttp's connector opens (names, TLS, proxies), for two reasons:

- An unsolicited answer must never become the answer of another request. Here, a byte outside of an exchange
  closes its connection. aiohttp's pool would read it as the next answer (aio-libs/aiohttp#13656).
- A session builds each request from many options, which uses about 90 µs more CPU per call.

tests/integration/test_marketing_cloud_http.py and tests/benchmarks cover both. `response.py` reads the
responses: a malformed body never hides an answer."""

import asyncio
import errno
import os
import resource
import select
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from worker.errors import SettingsError
from worker.marketing_cloud.response import BODY_LIMIT, Response, ResponseReader
from worker.settings import Settings
from worker.settings.checks import parsed_url

IDLE_TIMEOUT = 30.0  # seconds for which an idle connection may be reused
TLS_LIFE = 1.0  # seconds between checks of the certificate files: each check uses 20 µs of CPU
BODY_TIMEOUT = 5.0  # seconds for the rest of a body: the head decides the outcome
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
SHORTAGE_PAUSE = 0.5  # seconds
OTHERS = 224  # descriptors reserved for connections to the broker, the admin server and files
MOST_CALLS = 60_000  # concurrent
REST_HOST = "https://rest.marketingcloudapis.com"  # until the token response names the host
FAILURES = (TimeoutError, aiohttp.ClientError, OSError, ValueError)
_LENGTH = b"Content-Length: "

EnsureLease = Callable[[], Awaitable[None]]


class NoAnswer(Exception):
    """The call ended without an answer. The text quotes nothing from the request."""


class _Stale(Exception):
    """A kept connection failed before an answer began."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the environment variable that names it."""

    variable: str
    url: URL
    headers: Mapping[str, str] = field(repr=False)  # for the proxy


def proxy_for(url: URL) -> Proxy | None:
    """The proxy for `url` from the environment: `HTTPS_PROXY` or `HTTP_PROXY`, unless `NO_PROXY` lists the
    host. Lower-case names work too, as in other programs. Raises SettingsError if the variable is not the URL
    of a proxy."""
    value = getproxies().get(url.scheme, "").strip()
    if not value or proxy_bypass(url.host or ""):
        return None
    lower = f"{url.scheme}_proxy"
    variable = lower if lower in os.environ else lower.upper()
    try:
        proxy = parsed_url(value, "http")
        headers = {}
        if proxy.user is not None:
            headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    except ValueError:
        raise SettingsError(
            f"{variable} must be the URL of a proxy that is reached by http://, such as "
            "http://proxy.example:3128"
        ) from None
    return Proxy(variable, proxy.origin(), headers)


class _Connection(asyncio.Protocol):
    """One connection, opened by aiohttp, for one exchange at a time. Any byte outside of an exchange closes
    it."""

    def __init__(
        self, opened: Connection, tls: ssl.SSLContext, ended: "Callable[[_Connection], None]"
    ) -> None:
        protocol, transport = opened.protocol, opened.transport
        if protocol is None or transport is None or protocol.should_close:
            raise aiohttp.ServerDisconnectedError
        self._opened = opened
        self._transport = transport
        self.tls = tls
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._reader: ResponseReader | None = None
        self._received: asyncio.Future[None]  # done when the response has ended
        self._has_served = False
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._deadline = 0.0  # loop time
        self._timer: asyncio.TimerHandle
        self.idle_until = 0.0  # loop time
        self.is_ended = transport.is_closing()
        transport.set_protocol(self)

    @property
    def is_sent(self) -> bool:
        return not self._transport.get_write_buffer_size()

    async def ask(self, request: bytes, deadline: float) -> ResponseReader:
        """Write the request, and return the reader when the response has ended. Raises TimeoutError if the
        head does not arrive in time, and _Stale or ServerDisconnectedError if the connection ends before."""
        stale = _Stale if self._has_served else aiohttp.ServerDisconnectedError
        # Bytes that arrived before the request was written do not answer it, even if they are still unread.
        if self.is_ended or (self._has_served and self._poll.poll(0)):
            raise stale
        self._reader = reader = ResponseReader()
        self._received = self._loop.create_future()
        self._deadline, self._timer = deadline, self._loop.call_at(deadline, self._expire)
        self._transport.write(request)
        try:
            await self._received
        finally:
            self._timer.cancel()
            self._reader, self._has_served = None, True
        if not reader.has_head:
            raise aiohttp.ServerDisconnectedError if reader.has_begun else stale
        return reader

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self.close()
            return
        had_head = reader.has_head
        reader.feed(data)
        if reader.is_done:
            self._finish()
        elif reader.has_head and not had_head:
            self._timer.cancel()
            body_deadline = min(self._deadline, self._loop.time() + BODY_TIMEOUT)
            self._timer = self._loop.call_at(body_deadline, self._expire)

    def connection_lost(self, error: Exception | None) -> None:
        self.close()
        if self._reader is not None:
            self._finish()

    def _expire(self) -> None:
        if self._reader is not None and self._reader.has_head:
            self._finish()
        elif not self._received.done():
            self._received.set_exception(TimeoutError())

    def _finish(self) -> None:
        if self._reader is not None and not self._reader.is_done:
            self._reader.end()
        if not self._received.done():
            self._received.set_result(None)

    def close(self) -> None:
        """Close it. Unsent bytes are dropped."""
        if not self.is_ended:
            is_sent, self.is_ended = self.is_sent, True
            self._opened.close()
            if not is_sent:
                self._transport.abort()
        self._ended(self)


@dataclass(slots=True)
class HttpEndpoint:
    """The URL and the head of a request, up to the value of Content-Length. The head may hold a token. All
    endpoints of a host share their idle connections."""

    url: URL
    head: bytes
    proxy: Proxy | None
    idle: list[_Connection] = field(default_factory=list)

    def __repr__(self) -> str:
        return "HttpEndpoint(***)"

    def plus(self, headers: Mapping[str, str]) -> "HttpEndpoint":
        """A copy with more headers; an invalid one is left out."""
        sound = {k: v for k, v in headers.items() if v.isascii() and v.isprintable()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sound.items())
        return replace(self, head=self.head.removesuffix(_LENGTH) + lines.encode("ascii") + _LENGTH)


class Http:
    """Sends POST requests. Raises SettingsError if the environment names an invalid proxy."""

    def __init__(self, settings: Settings, on_shortage: Callable[[str], None] = lambda _: None) -> None:
        """Calls `on_shortage` with the reason if no file descriptor is free for a call."""
        # Check both schemes, whatever the URLs have, so that an error shows at the start.
        for url in (settings.auth_url, settings.rest_url):
            for scheme in ("https", "http"):
                proxy_for(URL(url or REST_HOST).with_scheme(scheme))
        self._on_shortage = on_shortage
        self._settings = settings
        self._tls, self._tls_ends = settings.tls("mc"), 0.0
        self._timeout = settings.http_timeout
        self._loop = asyncio.get_running_loop()
        # The session keeps no connection. (`force_close` would ask proxies to close tunnels.)
        self._connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=0.001)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            skip_auto_headers=("Accept", "User-Agent"),
        )
        self._connecting = aiohttp.ClientTimeout(connect=self._timeout)
        self._connections: set[_Connection] = set()
        self._idle: dict[URL, list[_Connection]] = {}  # by host
        self._descriptors = asyncio.Semaphore(_descriptors_for_calls())

    async def close(self) -> None:
        """Close all connections at once."""
        self._close(self._connections)
        await self._session.close()

    async def post(self, url: str, document: Mapping[str, object]) -> Response:
        """POST a JSON object with aiohttp's session, on its own connection. Raises NoAnswer."""
        where = URL(url)
        proxy = proxy_for(where)
        to_proxy = proxy.headers if proxy else {}
        while True:
            try:
                async with self._session.post(
                    where,
                    json=document,
                    headers={"Accept-Encoding": "identity", **(to_proxy if where.scheme == "http" else {})},
                    ssl=self._settings.tls("mc"),
                    proxy=proxy.url if proxy else None,
                    proxy_headers=to_proxy,
                    allow_redirects=False,
                ) as answer:
                    response = Response(answer.status, answer.headers, await _body(answer))
                return _checked(response, proxy)
            except FAILURES as error:
                await self._failed(error, proxy)

    def endpoint(self, url: str, headers: Mapping[str, str]) -> HttpEndpoint:
        """Prepare POSTs to `url`, through the proxy for it, if there is one."""
        where = URL(url)
        proxy = proxy_for(where)
        fields = {"Host": where.host_port_subcomponent or "", "Accept-Encoding": "identity", **headers}
        path = where.raw_path_qs
        if proxy is not None and where.scheme == "http":
            path = str(where)
            fields |= proxy.headers
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        head = "\r\n".join([*lines, ""]).encode("ascii") + _LENGTH
        return HttpEndpoint(where, head, proxy, self._idle.setdefault(where.origin(), []))

    async def send(
        self, endpoint: HttpEndpoint, body: bytes, ensure_lease: EnsureLease | None = None
    ) -> Response:
        """POST and return the response. Awaits `ensure_lease` when the connection is open, immediately before
        the request is written. If a reused connection fails before an answer begins, repeats both on another
        one. Waits if no file descriptor is free. Raises NoAnswer."""
        async with self._descriptors:
            while True:
                try:
                    answer = await self._exchange(endpoint, body, ensure_lease)
                    return _checked(answer, endpoint.proxy)
                except _Stale:
                    continue
                except FAILURES as error:
                    await self._failed(error, endpoint.proxy)

    async def _exchange(
        self, endpoint: HttpEndpoint, body: bytes, ensure_lease: EnsureLease | None
    ) -> Response:
        time = self._loop.time
        deadline = time() + self._timeout
        kept = self._kept(endpoint.idle)
        connection = kept or await self._open(endpoint)
        try:
            if ensure_lease is not None:
                before = time()
                await ensure_lease()
                deadline += time() - before
            reader = await connection.ask(b"%b%d\r\n\r\n%b" % (endpoint.head, len(body), body), deadline)
        except BaseException as error:
            connection.close()
            if kept is not None and isinstance(error, _Stale | TimeoutError):
                self._close(endpoint.idle)  # the idle ones have probably failed too
            raise
        if reader.keeps_connection and connection.is_sent:
            connection.idle_until = time() + IDLE_TIMEOUT
            endpoint.idle.append(connection)
        else:
            connection.close()
        return reader.response

    def _current_tls(self) -> ssl.SSLContext:
        now = self._loop.time()
        if now >= self._tls_ends:
            self._tls, self._tls_ends = self._settings.tls("mc"), now + TLS_LIFE
        return self._tls

    async def _open(self, endpoint: HttpEndpoint) -> _Connection:
        where, proxy, tls = endpoint.url, endpoint.proxy, self._current_tls()
        request = aiohttp.ClientRequest(
            "POST",
            where,
            loop=self._loop,
            ssl=tls,
            proxy=proxy.url if proxy else None,
            proxy_headers={"Host": where.host_port_subcomponent or "", **(proxy.headers if proxy else {})},
        )
        opened = await self._connector.connect(request, [], self._connecting)
        try:
            connection = _Connection(opened, tls, self._connections.discard)
        except BaseException:
            opened.close()
            raise
        self._connections.add(connection)
        return connection

    def _kept(self, idle: list[_Connection]) -> _Connection | None:
        """The most recently used idle connection. Closes connections that were verified with certificates
        that have been replaced since."""
        now, tls = self._loop.time(), self._current_tls()
        while idle and (idle[0].is_ended or idle[0].idle_until < now):
            idle.pop(0).close()
        while idle:
            connection = idle.pop()
            if not connection.is_ended and connection.tls is tls:
                return connection
            connection.close()
        return None

    @staticmethod
    def _close(connections: "list[_Connection] | set[_Connection]") -> None:
        for connection in [*connections]:
            connection.close()
        connections.clear()

    async def _failed(self, error: Exception, proxy: Proxy | None) -> None:
        """Raise NoAnswer, or wait a moment if no file descriptor is free: that is not Marketing Cloud's
        failure."""
        number = error.errno if isinstance(error, OSError) else None
        if number not in NO_DESCRIPTOR:
            raise NoAnswer(self._explain(error, proxy)) from None
        self._on_shortage(os.strerror(number or 0))
        await asyncio.sleep(SHORTAGE_PAUSE)

    def _explain(self, error: Exception, proxy: Proxy | None) -> str:  # noqa: PLR0911 - one line for each error
        match error:
            case aiohttp.ClientHttpProxyError() if proxy is not None:
                return _refused_by(proxy, error.status)
            case aiohttp.ClientProxyConnectionError() if proxy is not None:
                return f"the proxy of {proxy.variable} cannot be reached ({_reason(error)})"
            case aiohttp.ClientConnectorCertificateError():
                why = getattr(error.certificate_error, "verify_message", "it could not be verified")
                return f"the TLS certificate is not valid ({why})"
            case aiohttp.ClientSSLError():
                return "TLS failed: check that the port speaks TLS"
            case aiohttp.ClientConnectorDNSError():
                return "the host name could not be resolved"
            case aiohttp.ClientConnectorError():
                return f"the connection was refused ({_reason(error)})"
            case TimeoutError():
                return f"no answer within {self._timeout:g} s"
        return "the connection was lost before the answer was complete"


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """The received part of the body, at most BODY_LIMIT bytes."""
    try:
        return await answer.content.readexactly(BODY_LIMIT)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except aiohttp.ClientPayloadError:
        return b""


def _checked(response: Response, proxy: Proxy | None) -> Response:
    if response.status == 407 and proxy is not None:
        raise NoAnswer(_refused_by(proxy, 407))
    return response


def _refused_by(proxy: Proxy, status: int) -> str:
    hint = ": set its user and password as http://USER:PASSWORD@HOST:PORT" if status == 407 else ""
    return f"the proxy of {proxy.variable} answered {status}{hint}"


def _reason(error: aiohttp.ClientConnectorError) -> str:
    return os.strerror(error.errno) if error.errno else "no address answered"


def _descriptors_for_calls() -> int:
    """The most concurrent calls that leave descriptors for the broker and the admin server."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CALLS if soft == resource.RLIM_INFINITY else max(16, min(MOST_CALLS, soft - OTHERS))
