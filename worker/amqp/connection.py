"""One connection to RabbitMQ. It does not reconnect. Its owner opens the next one, so that no state of a lost
connection is kept."""

import asyncio
import contextlib
import ssl
from importlib.metadata import version
from typing import cast

import aiormq
import aiormq.channel
from yarl import URL

from worker.amqp.causes import (
    AMQP_ERRORS,
    REFUSED,
    RESET,
    broker_errors,
    describe,
    describe_refusal,
    is_cancelled,
)
from worker.amqp.endpoints import Endpoint, by_trust, node_name, node_urls, resolve
from worker.amqp.interceptor import FrameInterceptor, KeepsBody, OnConfirm, OnContent
from worker.amqp.transport import InterceptingTransport
from worker.errors import BrokerUnreachable
from worker.settings import Settings

CONNECT_TIMEOUT = 15.0  # seconds
NODE_TIMEOUT = 5.0  # seconds, where there is another address to try
CLOSE_TIMEOUT = 5.0  # seconds

CONNECTION_FORCED = 320  # reply code: by an operator, or because the node stops

# aiormq lets the last two escape when the peer closes during the handshake. A broker that is starting does
# that.
HANDSHAKE_ERRORS = (*AMQP_ERRORS, StopAsyncIteration, EOFError)

Channel = aiormq.channel.Channel


class Connection:
    """An open connection. `lost` is done (with None) when it has ended, on either side."""

    def __init__(
        self, connection: aiormq.Connection, transport: InterceptingTransport, endpoint: Endpoint
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._endpoint = endpoint
        self._is_closing = False
        # Consumers that have asked most nodes of their queue something, and have no answer yet.
        self.open_votes: set[object] = set()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.closing.add_done_callback(self._on_closed)

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        if closing.done() and not closing.cancelled():
            closing.exception()
        if not self.lost.done():
            self.lost.set_result(None)
            if not self._is_closing:
                self._endpoint.failed()

    @property
    def is_open(self) -> bool:
        return not self.lost.done()

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has said that it takes no publishes for now: an alarm of memory or disk."""
        return self._transport.is_blocked

    @property
    def heartbeat(self) -> float:
        """Seconds of silence after which the broker may give this client up; 0 means never."""
        return float(self._connection.connection_tune.heartbeat or 0)

    @property
    def frame_max(self) -> int:
        """The largest frame, in bytes, that may travel."""
        return int(self._connection.connection_tune.frame_max)

    @property
    def server_version(self) -> str:
        return str((self._connection.server_properties or {}).get("version", "unknown"))

    async def channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel. Raises BrokerUnreachable."""
        with broker_errors("RabbitMQ gave no channel"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return cast(Channel, await self._connection.channel(publisher_confirms=confirms))

    def intercept(
        self,
        channel: Channel,
        on_content: OnContent,
        on_confirm: OnConfirm | None = None,
        keeps_body: KeepsBody | None = None,
    ) -> FrameInterceptor:
        """Have the frames of messages on `channel` handed to the callbacks at once (interceptor.py), until it
        closes. The callbacks must be quick and must not raise."""
        interceptors, number = self._transport.interceptors, channel.number
        interceptor = interceptors[number] = FrameInterceptor(number, on_content, on_confirm, keeps_body)

        def remove(_: object) -> None:
            interceptor.is_open = False
            if interceptors.get(number) is interceptor:
                del interceptors[number]

        channel.closing.add_done_callback(remove)
        return interceptor

    def write(self, frames: bytes) -> None:
        """Write whole frames now, ahead of what the client has queued. Nothing on a lost connection."""
        self._transport.write(frames)

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was written, or the connection is lost."""
        await self._transport.drain()

    @property
    def was_closed_for_cause(self) -> bool:
        """Whether the broker closed it for something that this client sent."""
        reason = self._transport.close_reason
        return reason is not None and reason[0] != CONNECTION_FORCED

    @property
    def heard_at(self) -> float:
        """Loop time of the last bytes from the broker."""
        return self._transport.heard_at

    def abort(self) -> None:
        """End it at once, as if the peer had gone."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Stop reading for a moment, so that arriving data does not fill the memory. The broker drops a
        client that does not read for 15 s."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    async def close(self) -> None:
        """Close it; never raises, and gives up after a few seconds on a peer that is stuck."""
        self._is_closing = True
        self.resume_reading()
        with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._connection.close()
        if not self._connection.closing.done():
            self._transport.abort()
        self._on_closed(self._connection.closing)


async def close_channel(channel: Channel, timeout: float) -> None:
    """Close it within so many seconds; never raises. Where the broker does not answer, the connection is
    lost and the channel with it."""
    with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
        async with asyncio.timeout(timeout):
            await channel.close()


async def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection named after its `purpose`, to the first node of OTT_AMQP_URL that takes it. An
    address that failed lately is tried last. Raises BrokerUnreachable, in one line without a password."""
    urls = node_urls(settings)
    tls = _tls(settings, urls)
    problems: dict[str, str] = {}
    endpoints = await _resolve(urls, problems)
    timeout = CONNECT_TIMEOUT if len(endpoints) == 1 else NODE_TIMEOUT
    for endpoint in endpoints:
        try:
            return await _connect_to(endpoint, tls, purpose, timeout)
        except BrokerUnreachable as error:
            _note(problems, endpoint.node, str(error))
    if len(problems) == 1:
        ((node, problem),) = problems.items()
        raise BrokerUnreachable(f"RabbitMQ at {node} cannot be reached: {problem}")
    each = "; ".join(f"{node}: {problem}" for node, problem in problems.items())
    raise BrokerUnreachable(f"No node of RabbitMQ can be reached: {each}")


def _note(problems: dict[str, str], node: str, problem: str) -> None:
    """An address that answers has a more useful error than one where nothing listens."""
    if problem != REFUSED or node not in problems:
        problems[node] = problem


async def _resolve(urls: list[URL], problems: dict[str, str]) -> list[Endpoint]:
    """The addresses of all nodes in the order in which to try them; a name that is not known is noted."""
    endpoints: list[Endpoint] = []
    for url in urls:
        try:
            async with asyncio.timeout(NODE_TIMEOUT):
                endpoints += await resolve(url)
        except (OSError, TimeoutError) as error:
            problems[node_name(url)] = describe(error)
    return by_trust(endpoints)


async def _connect_to(
    endpoint: Endpoint, tls: ssl.SSLContext | None, purpose: str, timeout: float
) -> Connection:
    """Raises BrokerUnreachable, which says only why."""
    transport = InterceptingTransport(endpoint.address, endpoint.port, tls if endpoint.is_tls else None)
    connection = aiormq.Connection(
        endpoint.url,
        transport_factory=transport,
        client_properties={"connection_name": f"ott-worker {purpose}", "product": "ott-worker"},
    )
    try:
        async with asyncio.timeout(timeout):
            await connection.connect()
    except (TimeoutError, asyncio.CancelledError, *HANDSHAKE_ERRORS) as error:
        transport.abort()
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        endpoint.failed()
        raise BrokerUnreachable(_why(error, endpoint, transport.close_reason)) from None
    if not transport.is_used:
        raise BrokerUnreachable(
            f"aiormq {version('aiormq')} does not use its transport_factory: install the locked version"
        )
    endpoint.succeeded()
    return Connection(connection, transport, endpoint)


def _why(error: BaseException, endpoint: Endpoint, refusal: tuple[int, str] | None) -> str:
    if refusal is not None:
        return describe_refusal(*refusal, endpoint.url.user or "guest", endpoint.vhost)
    why = describe(error)
    if endpoint.is_tls and why == RESET:
        why += " (if it wants a client certificate, set OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE)"
    return why


def _tls(settings: Settings, urls: list[URL]) -> ssl.SSLContext | None:
    if all(url.scheme != "amqps" for url in urls):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.amqp_ca_file)
        if settings.amqp_cert_file:
            context.load_cert_chain(settings.amqp_cert_file, settings.amqp_key_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerUnreachable(
            "OTT_AMQP_CA_FILE, OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE must be PEM files "
            f"that can be read: {error.strerror or 'not PEM'}"
        ) from None
    return context
