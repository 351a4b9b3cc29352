"""One connection to RabbitMQ. It does not reconnect: whoever holds it opens the next one, so that nothing
of a lost connection lives on."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from importlib.metadata import version
from typing import cast

import aiormq
import aiormq.channel
import aiormq.exceptions
import pamqp.exceptions
from yarl import URL

from worker.amqp.interceptor import FrameInterceptor, KeepsBody, OnConfirm, OnContent
from worker.amqp.transport import InterceptingTransport
from worker.errors import BrokerUnreachable
from worker.settings import Settings

HEARTBEAT = 10  # seconds; a stuck peer is found within 33
CONNECT_TIMEOUT = 15.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds

Channel = aiormq.channel.Channel

AMQP_ERRORS = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.PublishError,
    pamqp.exceptions.PAMQPException,
    ConnectionError,
    OSError,
    RuntimeError,  # aiormq's word for "the connection is closed already"
)


# aiormq lets these through when the peer goes away in the middle of the handshake, as a broker that is
# starting does.
HANDSHAKE_ERRORS = (StopAsyncIteration, EOFError)


class Connection:
    """An open connection. `lost` ends (with None) when it is gone, whoever ended it."""

    def __init__(self, connection: aiormq.Connection, transport: InterceptingTransport) -> None:
        self._connection = connection
        self._transport = transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.closing.add_done_callback(self._on_closed)

    def _on_closed(self, closing: "asyncio.Future[object]") -> None:
        if closing.done() and not closing.cancelled():
            closing.exception()
        if not self.lost.done():
            self.lost.set_result(None)

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
        """Have what concerns messages on `channel` handed over at once (interceptor.py), until it closes. The
        callbacks must be quick and must not raise."""
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
    def heard_at(self) -> float:
        """Loop time of the last bytes from the broker."""
        return self._transport.heard_at

    def abort(self) -> None:
        """End it at once, as if the peer had gone."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Read nothing more for a moment, so that what arrives does not fill the memory. The broker gives a
        client up that does not read for 15 s."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    async def close(self) -> None:
        """Close it; never raises, and gives up after a few seconds on a peer that is stuck."""
        self.resume_reading()
        with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._connection.close()
        if not self._connection.closing.done():
            self._transport.abort()
        self._on_closed(self._connection.closing)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextlib.contextmanager
def broker_errors(what: str, *further: type[Exception]) -> Iterator[None]:
    """Translate what the client raises into BrokerUnreachable, which begins with `what`. The client cancels
    its own calls when a connection ends under them: that is no cancellation of ours."""
    errors: tuple[type[BaseException], ...] = (TimeoutError, asyncio.CancelledError, *AMQP_ERRORS, *further)
    try:
        yield
    except errors as error:
        if isinstance(error, asyncio.CancelledError) and _cancelled():
            raise
        raise BrokerUnreachable(f"{what}: {describe(error)}") from None


async def close_channel(channel: Channel, patience: float) -> None:
    """Close it within so many seconds; never raises. Where the broker does not answer, the connection is
    lost and the channel with it."""
    with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
        async with asyncio.timeout(patience):
            await channel.close()


async def connect(settings: Settings, purpose: str) -> Connection:
    """Open a connection named after its `purpose`. Raises BrokerUnreachable, in one line without a
    password. The URL is read anew each time, so that a rotated password file is taken up."""
    url = _url(settings)
    heartbeat = url.query.get("heartbeat", HEARTBEAT)
    transport = InterceptingTransport(_tls(settings) if url.scheme == "amqps" else None)
    connection = aiormq.Connection(
        url.with_query(heartbeat=heartbeat),
        transport_factory=transport,
        client_properties={"connection_name": f"ott-worker {purpose}", "product": "ott-worker"},
    )
    where = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
    with broker_errors(f"RabbitMQ at {where} cannot be reached", *HANDSHAKE_ERRORS):
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
        except aiormq.exceptions.InvalidFrameError:
            raise BrokerUnreachable(
                f"RabbitMQ at {where} turned the connection down: {_refusal(transport.close_text, url)}"
            ) from None
        except (aiormq.exceptions.AMQPError, *HANDSHAKE_ERRORS):
            if transport.is_silent and url.scheme == "amqp":
                raise BrokerUnreachable(
                    f"RabbitMQ at {where} cannot be reached: it ended the connection without a word. Either "
                    "the port speaks TLS (use amqps:// in OTT_AMQP_URL), or the broker is just starting"
                ) from None
            raise
    if not transport.is_used:
        raise BrokerUnreachable(
            f"aiormq {version('aiormq')} does not use its transport_factory: install the locked version"
        )
    return Connection(connection, transport)


def _url(settings: Settings) -> URL:
    try:
        url = URL(settings.now("amqp_url"))
    except ValueError:
        url = URL()
    if url.scheme not in ("amqp", "amqps") or not url.host:
        raise BrokerUnreachable("OTT_AMQP_URL_FILE no longer holds an amqp:// or amqps:// URL")
    return url


def _tls(settings: Settings) -> ssl.SSLContext:
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


def describe(error: BaseException) -> str:
    """What went wrong, in a few words and without the URL (which holds a password)."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    for kind, words in _WORDS:
        if isinstance(cause, kind):
            return words
    if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
        return "the port does not speak TLS: use amqp://, or the TLS port, usually 5671 (check OTT_AMQP_URL)"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or 'handshake'} (check OTT_AMQP_CA_FILE and the host name)"
    text = str(cause.args[-1] if cause.args else cause)
    if "Connect call failed" in text:
        return "connection refused"
    return _plain(text) or type(error).__name__


NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")  # OpenSSL's word for what is no TLS
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (asyncio.CancelledError, "the connection was lost"),
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "the host name is not known"),
    (
        aiormq.exceptions.ProbableAuthenticationError,
        "user name, password or virtual host refused (check OTT_AMQP_URL)",
    ),
)


def _refusal(text: str, url: URL) -> str:
    """What to do about a refused connection.open."""
    vhost = url.raw_path.removeprefix("/") or "/"
    if "limit" in text:
        return (
            f"a connection limit is reached: {_plain(text.removeprefix('NOT_ALLOWED - '))} "
            "(close connections, or raise it with rabbitmqctl set_vhost_limits or set_user_limits)"
        )
    if "not found" in text:
        return f"the virtual host {vhost} does not exist (check the end of OTT_AMQP_URL)"
    if "refused for user" in text:
        return (
            f"user {url.user or 'guest'} may not use the virtual host {vhost} "
            "(check OTT_AMQP_URL, or grant it with rabbitmqctl set_permissions)"
        )
    return _plain(text) or "it did not say why"


def _plain(text: str) -> str:
    line = " ".join(text.split())
    return "connection lost" if "://" in line else line[:200]
