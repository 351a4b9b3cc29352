"""HTTP for Marketing Cloud: kept connections, no cookies, no redirects, bounded answers, plain failures.

It stands on aiohttp's connector (pool, TLS, proxies, host names) and parser. The session above them builds
each request anew from many options, which costs more than all the rest of a call; here the head of a
request is built once and sent many times.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import get_env_proxy_for_url
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from worker.errors import SettingsError
from worker.settings import Settings

ANSWER_LIMIT = 262_144  # bytes of an answer that are read
KEEP_ALIVE = 30.0  # seconds that an idle connection is kept
_LENGTH = b"Content-Length: "

EnsureLease = Callable[[], Awaitable[None]]


class NoAnswer(Exception):
    """The call ended without a whole answer. `sent` tells whether the request may have arrived."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a request goes and how it begins, up to the value of Content-Length. It may hold a token."""

    target: aiohttp.ClientRequest
    head: bytes

    def __repr__(self) -> str:
        return "Endpoint(***)"

    def plus(self, headers: Mapping[str, str]) -> "Endpoint":
        """The same with more headers; one that would not be a header line is left out."""
        sound = {k: v for k, v in headers.items() if v.isascii() and v.isprintable()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in sound.items())
        return Endpoint(self.target, self.head.removesuffix(_LENGTH) + lines.encode("ascii") + _LENGTH)


class Http:
    """POSTs JSON. One pool of connections for all calls; the caller closes it."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.http_timeout
        self._connecting = aiohttp.ClientTimeout(connect=self._timeout)
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ssl=_tls(settings), keepalive_timeout=KEEP_ALIVE)

    async def close(self) -> None:
        """Close all connections at once."""
        await self._connector.close()

    def endpoint(self, url: str, headers: Mapping[str, str]) -> Endpoint:
        """Prepare POSTs to `url`, through the proxy that the environment names for it, if any."""
        where = URL(url)
        proxy, auth = _proxy(where)
        target = aiohttp.ClientRequest("POST", where, loop=self._loop, proxy=proxy, proxy_auth=auth)
        fields = {"Host": where.host_port_subcomponent or "", **headers}
        path = where.raw_path_qs
        if proxy is not None and where.scheme == "http":
            path = str(where)
            if auth is not None:
                fields["Proxy-Authorization"] = auth.encode()
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return Endpoint(target, "\r\n".join([*lines, ""]).encode("ascii") + _LENGTH)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        """`send` to an endpoint that is used once."""
        return await self.send(self.endpoint(url, headers), body)

    async def send(
        self, endpoint: Endpoint, body: bytes, ensure_lease: EnsureLease | None = None
    ) -> tuple[int, str | None, bytes]:
        """POST and return status, `Retry-After` and the answer's body. `ensure_lease` is awaited when the
        connection stands, right before the request is written. Raises NoAnswer, in words that hold nothing
        of the request."""
        try:
            return await self._exchange(endpoint, body, ensure_lease)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._timeout:g} s") from None
        except aiohttp.ClientSSLError:
            raise NoAnswer("the TLS certificate was not accepted") from None
        except aiohttp.ClientConnectorDNSError:
            raise NoAnswer("the host name could not be resolved") from None
        except aiohttp.ClientConnectorError:
            raise NoAnswer("the connection was refused") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError):
            raise NoAnswer("the connection was lost before the answer was complete") from None

    async def _exchange(
        self, endpoint: Endpoint, body: bytes, ensure_lease: EnsureLease | None
    ) -> tuple[int, str | None, bytes]:
        asked_at = self._loop.time()
        connection = await self._connector.connect(endpoint.target, [], self._connecting)
        deadline = asked_at + self._timeout
        try:
            if ensure_lease is not None:
                before = self._loop.time()
                await ensure_lease()
                deadline += self._loop.time() - before
            protocol, transport = _ends(connection)
            # Ends the wait for the answer's head without the cost of a time-out's task bookkeeping.
            expiry = self._loop.call_at(deadline, protocol.set_exception, TimeoutError())
            try:
                protocol.set_response_params(read_until_eof=True)
                transport.write(b"%b%d\r\n\r\n%b" % (endpoint.head, len(body), body))
                head, content = await protocol.read()
                while 100 <= head.code < 200:
                    head, content = await protocol.read()
            finally:
                expiry.cancel()
            answer = b"" if content.at_eof() else await _read(content, deadline)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return head.code, head.headers.get("Retry-After"), answer


def _ends(connection: aiohttp.connector.Connection) -> tuple[ResponseHandler, asyncio.Transport]:
    if connection.protocol is None or connection.transport is None:
        raise aiohttp.ServerDisconnectedError
    return connection.protocol, connection.transport


async def _read(content: Any, deadline: float) -> bytes:
    answer = b""
    async with asyncio.timeout_at(deadline):
        while len(answer) < ANSWER_LIMIT and not content.at_eof():
            answer += await content.read(ANSWER_LIMIT - len(answer))
    return answer


def _proxy(url: URL) -> tuple[URL | None, Any]:
    try:
        return get_env_proxy_for_url(url)
    except LookupError:
        return None, None


def to_json(document: Mapping[str, object]) -> bytes:
    """Encode a JSON object."""
    return json.dumps(document).encode()


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.mc_ca_file)
    except (OSError, ssl.SSLError):
        raise SettingsError("OTT_MC_CA_FILE must be a PEM file of CA certificates that can be read") from None
