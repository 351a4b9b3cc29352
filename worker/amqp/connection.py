"""One connection to one of the RabbitMQ nodes in OTT_AMQP_URL. It does not reconnect. Its owner opens the
next one (`keep_connected`), so that no state of a lost connection is kept."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar, cast

import aio_pika
import aiormq
import aiormq.channel
from aio_pika.abc import AbstractChannel, AbstractConnection, ConnectionParameter
from aio_pika.exceptions import ConnectionClosed
from aiormq.abc import ExceptionType
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential
from yarl import URL

from worker.amqp.causes import (
    AMQP_ERRORS,
    Cause,
    broker_errors,
    describe,
    describe_refusal,
    is_cancelled,
)
from worker.amqp.transport import FrameInterceptor, InterceptingTransport, KeepsBody, OnConfirm, OnContent
from worker.backoff import RECONNECT, Backoff
from worker.errors import BrokerUnreachable, WorkerError
from worker.settings import Settings, split_urls

CONNECT_TIMEOUT = 15.0  # seconds
NODE_TIMEOUT = 5.0  # seconds, if there is another address to try
CLOSE_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 20.0  # seconds; readers detect within 30 that their node is cut off (contract §1)

CONNECTION_FORCED = 320  # reply code: by an operator, or because the node stops

# aiormq raises the last two if the peer closes during the handshake, as a starting broker does.
HANDSHAKE_ERRORS = (*AMQP_ERRORS, StopAsyncIteration, EOFError)

STABLE_AFTER = 5.0  # seconds; after a connection that lasted longer, the back-off begins again
HEARTBEAT = 10  # seconds; a stuck peer is detected within 33
PORTS = {"amqp": 5672, "amqps": 5671}

RawChannel = aiormq.channel.Channel
C = TypeVar("C", bound=AbstractConnection)


class Endpoint(NamedTuple):
    """One address of one node. `url` names the node, and holds user, password and virtual host."""

    url: URL
    address: str
    port: int


# Loop times at which a node could not be reached or its connection was lost, for the whole process.
_failed_at: dict[tuple[str, int], float] = {}


def _failed(endpoint: Endpoint) -> None:
    """Try the other addresses first."""
    _failed_at[endpoint[1:]] = asyncio.get_running_loop().time()


def node_urls(settings: Settings) -> list[URL]:
    """The nodes of OTT_AMQP_URL. Its file is read each time, so that a rotated password takes effect. Raises
    BrokerUnreachable if it no longer holds a URL."""
    try:
        urls = [URL(text) for text in split_urls(settings.now("amqp_url"))]
    except ValueError:
        urls = []
    if not urls or any(url.scheme not in PORTS or not url.host for url in urls):
        raise BrokerUnreachable("OTT_AMQP_URL_FILE no longer holds an amqp:// or amqps:// URL")
    return [url.with_query(heartbeat=url.query.get("heartbeat", HEARTBEAT)) for url in urls]


def vhost_of(url: URL) -> str:
    """The virtual host in a URL."""
    return url.path[1:].replace("%2F", "/") or "/"


def port_of(url: URL) -> int:
    """The port in a URL, or the default port of its scheme."""
    return url.port or PORTS[url.scheme]


def node_name(url: URL) -> str:
    """Host and port of a node."""
    return f"{url.host}:{port_of(url)}"


def tls_context(settings: Settings, url: URL) -> ssl.SSLContext | None:
    """The TLS context for a node with an amqps:// URL. Raises SettingsError."""
    return settings.tls("amqp") if url.scheme == "amqps" else None


class Connection(aio_pika.Connection):
    """aio-pika's connection, on our own transport (transport.py). `lost` is done (with None) when either side
    has ended it.

    Topology, streams, replies and orders use aio-pika. Two paths bypass it, by `raw_channel` and `intercept`:
    consuming requests and dead letters (consumer.py, queue.py), and the worker's confirmed publishing
    (publisher.py).
    - A property that pamqp cannot decode ends aio-pika's connection, and the message returns on the next one.
      On aio-pika's channels the transport removes such properties, but a dead letter must keep them.
    - aio-pika would double the worker's CPU time: 60 µs for a delivery instead of 13, 200 for a confirmed
      publish instead of 30. The whole worker uses 0.27 of the CPU of a bare loop of aio-pika and aiohttp
      (tests/benchmarks)."""

    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter(name="transport_factory", parser=lambda factory: factory, is_kwarg=True),
    )

    def __init__(self, endpoint: Endpoint, wire: InterceptingTransport, name: str) -> None:
        super().__init__(
            endpoint.url,
            client_properties={"connection_name": name, "product": "ott-worker"},
            transport_factory=wire,
        )
        self._endpoint = endpoint
        self.wire = wire
        self._ends_here = False
        self._raw: aiormq.Connection
        self._questions: AbstractChannel | None = None
        self._asking = asyncio.Lock()
        # Consumers with a majority check pending.
        self.open_votes: set[object] = set()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __del__(self) -> None:
        """Do nothing: the owner closes it. aio-pika would start a task here, even after the loop has
        ended."""

    async def connect(self, timeout: float | None = None) -> None:
        await super().connect(timeout)
        assert self.transport is not None
        self._raw = cast(aiormq.Connection, self.transport.connection)
        self._raw.closing.add_done_callback(self._on_end)

    def _on_end(self, closing: "asyncio.Future[object]") -> None:
        if closing.done() and not closing.cancelled():
            closing.exception()
        if not self.lost.done():
            self.lost.set_result(None)
            if not self._ends_here:
                _failed(self._endpoint)

    @property
    def is_open(self) -> bool:
        return not self.lost.done()

    @property
    def heartbeat(self) -> float:
        """Seconds of silence after which the broker may close the connection; 0 means never."""
        return float(self._raw.connection_tune.heartbeat or 0)

    @property
    def frame_max(self) -> int:
        """The negotiated largest frame, in bytes."""
        return int(self._raw.connection_tune.frame_max)

    @property
    def server_version(self) -> str:
        return str((self._raw.server_properties or {}).get("version", "unknown"))

    async def raw_channel(self, *, confirms: bool = False) -> RawChannel:
        """Open a channel of aiormq, on which aio-pika is built. Raises BrokerUnreachable."""
        with broker_errors("RabbitMQ opened no channel"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return cast(RawChannel, await self._raw.channel(publisher_confirms=confirms))

    @contextlib.asynccontextmanager
    async def asked(self, what: str) -> AsyncIterator[AbstractChannel]:
        """The channel for requests to the broker, one at a time and within the limit of `answered`. It is
        reused, because aio-pika keeps 4 kB for each channel until the connection ends. Raises
        BrokerUnreachable; its text begins with `what`."""
        with broker_errors(what):
            async with answered(self, what), self._asking:
                channel, self._questions = self._questions, None
                if channel is None or channel.is_closed:
                    channel = await self.channel(publisher_confirms=False)
                yield channel
                self._questions = channel

    def intercept(
        self,
        channel: RawChannel,
        on_content: OnContent,
        on_confirm: OnConfirm | None = None,
        keeps_body: KeepsBody | None = None,
    ) -> FrameInterceptor:
        """Pass the frames of messages on `channel` to the callbacks as they arrive (transport.py), until it
        closes. The callbacks must be quick and must not raise."""
        interceptors, number = self.wire.interceptors, channel.number
        interceptor = interceptors[number] = FrameInterceptor(number, on_content, on_confirm, keeps_body)

        def remove(_: object) -> None:
            interceptor.is_open = False
            if interceptors.get(number) is interceptor:
                del interceptors[number]

        channel.closing.add_done_callback(remove)
        return interceptor

    @property
    def was_closed_for_cause(self) -> bool:
        """Whether the broker closed it because of something that this client sent."""
        reason = self.wire.close_reason
        return reason is not None and reason[0] != CONNECTION_FORCED

    def abort(self) -> None:
        """End it at once, as if the peer had gone."""
        _failed(self._endpoint)
        self.wire.abort()

    async def close(self, exc: ExceptionType | None = ConnectionClosed) -> None:
        """Close it. Never raises, and does not wait for a stuck peer for more than CLOSE_TIMEOUT."""
        self._ends_here = True
        self.wire.resume_reading()
        with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                # First aiormq's connection: aio-pika's waits in a `finally` for a callback, which never runs
                # if its task is cancelled; only a second cancellation would end that wait.
                await self._raw.close(exc)
                await super().close(exc)
        if not self._raw.closing.done():
            self.wire.abort()
        self._on_end(self._raw.closing)


async def no_callback(_: object) -> None:
    """A callback for the client library, if it is to deliver nothing."""


@contextlib.asynccontextmanager
async def answered(connection: AbstractConnection, what: str) -> AsyncIterator[None]:
    """Limit the wait for the broker's answers. A missing answer aborts a Connection, so that the next one
    goes to another node. Raises BrokerUnreachable; its text begins with `what`."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            yield
    except TimeoutError:
        if isinstance(connection, Connection):
            connection.abort()
        raise BrokerUnreachable(f"{what}: RabbitMQ does not answer") from None


@contextlib.asynccontextmanager
async def opened(
    connection: AbstractConnection,
    what: str,
    *,
    confirms: bool = False,
    passes: tuple[type[Exception], ...] = (),
) -> AsyncIterator[AbstractChannel]:
    """An aio-pika channel that is closed at the end. Raises BrokerUnreachable, with a text that begins with
    `what`, for all errors of the client library except those in `passes`."""
    with broker_errors(what, passes):
        async with answered(connection, what):
            channel = await connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        try:
            yield channel
        finally:
            await close_channel(channel, CLOSE_TIMEOUT)


async def close_channel(channel: RawChannel | AbstractChannel, timeout: float) -> None:
    """Close it within so many seconds. Never raises: if the broker does not answer, the connection is lost,
    and the channel with it."""
    with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
        async with asyncio.timeout(timeout):
            await channel.close()


@contextlib.asynccontextmanager
async def connected(settings: Settings, purpose: str) -> AsyncIterator[Connection]:
    """A connection of `connect` that is closed at the end."""
    connection = await connect(settings, purpose)
    try:
        yield connection
    finally:
        await connection.close()


async def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection, named after its `purpose`, to the first node of OTT_AMQP_URL that accepts it.
    Addresses that failed last are tried last. Raises BrokerUnreachable, in one line without a password."""
    problems: dict[str, str] = {}
    endpoints: list[Endpoint] = []
    for url in node_urls(settings):
        try:
            async with asyncio.timeout(NODE_TIMEOUT):
                found = await asyncio.get_running_loop().getaddrinfo(
                    url.host, port_of(url), type=socket.SOCK_STREAM
                )
            addresses = dict.fromkeys(str(where[0]) for *_, where in found)
            endpoints += [Endpoint(url, address, port_of(url)) for address in addresses]
        except (OSError, TimeoutError) as error:
            problems[node_name(url)] = describe(error)
    timeout = CONNECT_TIMEOUT if len(endpoints) == 1 else NODE_TIMEOUT
    for endpoint in sorted(endpoints, key=lambda each: _failed_at.get(each[1:], 0.0)):
        try:
            return await _connect_to(endpoint, settings, purpose, timeout)
        except BrokerUnreachable as error:
            node, problem = node_name(endpoint.url), error.args[0]
            # The error of an address that answered says more than "connection refused".
            if problem is not Cause.REFUSED or node not in problems:
                problems[node] = problem
    raise BrokerUnreachable(
        "; ".join(f"RabbitMQ at {node} cannot be reached: {problem}" for node, problem in problems.items())
    )


async def _connect_to(endpoint: Endpoint, settings: Settings, purpose: str, timeout: float) -> Connection:
    """Raises BrokerUnreachable; its text is only the cause."""
    tls = tls_context(settings, endpoint.url)
    wire = InterceptingTransport(endpoint.address, endpoint.port, tls)
    connection = Connection(endpoint, wire, f"ott-worker {purpose}")
    try:
        async with asyncio.timeout(timeout):
            await connection.connect()
    except (TimeoutError, asyncio.CancelledError, *HANDSHAKE_ERRORS) as error:
        wire.abort()
        if is_cancelled():
            raise asyncio.CancelledError from None
        _failed(endpoint)
        why = describe(error) if wire.close_reason is None else describe_refusal(*wire.close_reason)
        if tls is not None and why is Cause.RESET:
            why += " (if it requires a client certificate, set OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE)"
        raise BrokerUnreachable(why) from None
    if not wire.is_used:
        await connection.close()
        raise BrokerUnreachable(
            f"aio-pika {version('aio-pika')} does not use its transport_factory: install the locked version"
        )
    _failed_at.pop(endpoint[1:], None)
    return connection


async def keep_connected(
    source: Callable[[], AbstractAsyncContextManager[C]],
    use: Callable[[C], Awaitable[None]],
    on_failure: Callable[[WorkerError], None],
    *,
    backoff: Backoff = RECONNECT,
    until: asyncio.Event | None = None,
) -> None:
    """Open a connection from `source` and `use` it, again and again. If `use` returns, the next connection is
    opened almost at once; if it raises, after a back-off. `on_failure` receives each error, and may raise it
    to end the loop. A defect is reported as BrokerUnreachable, so that the task goes on."""
    clock, end = asyncio.get_running_loop().time, until or asyncio.Event()

    async def once() -> None:
        """Raises WorkerError. After a connection that has lasted it returns, so that the back-off
        restarts."""
        opened_at = math.inf
        try:
            async with source() as connection:
                opened_at = clock()
                await use(connection)
        except WorkerError as error:
            if end.is_set() or clock() - opened_at <= STABLE_AFTER:
                raise
            on_failure(error)
        except Exception as error:
            raise BrokerUnreachable(f"internal error: {type(error).__name__}") from error

    def report(state: RetryCallState) -> None:
        if state.outcome is not None and isinstance(error := state.outcome.exception(), WorkerError):
            on_failure(error)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(WorkerError),
        wait=wait_random_exponential(backoff.first, backoff.longest),
        sleep=lambda seconds: pause(seconds, end),
        before_sleep=report,
        stop=lambda _: end.is_set(),
        retry_error_callback=lambda _: None,
    )
    while True:
        await retrying(once)
        if end.is_set():
            return
        await pause(backoff.draw(1), end)


async def pause(seconds: float, until: asyncio.Event) -> None:
    """Wait for so many seconds, or until the event is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()


async def cancel_all(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
