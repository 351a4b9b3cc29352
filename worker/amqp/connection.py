"""One connection to RabbitMQ. It does not reconnect: whoever holds it opens the next one, so that nothing
of a lost connection lives on."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, cast

import aiormq
import aiormq.channel
import aiormq.connection
import aiormq.exceptions
import pamqp.exceptions
from yarl import URL

from worker.amqp.frames import FrameInterceptor, FrameReceiver, OnConfirm, OnContent
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


class _Connection(aiormq.Connection):
    # The handshake is aiormq's own. Its loops take the ends of the stream as arguments: the reading one gets
    # our receiver instead, and the writer is kept. tests/integration holds this against the library's
    # next version.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taps: dict[int, FrameInterceptor] = {}
        self.writer: asyncio.StreamWriter | None = None

    @property
    def is_blocked(self) -> bool:
        return self.connected.is_set() and not self._Connection__connection_unblocked.is_set()  # type: ignore[attr-defined]

    async def _Connection__reader(self, frame_receiver: Any) -> None:  # noqa: N802
        receiver = FrameReceiver(frame_receiver.reader, self.taps)
        await super()._Connection__reader(receiver)  # type: ignore[misc]

    async def _Connection__writer(self, writer: asyncio.StreamWriter) -> None:  # noqa: N802
        self.writer = writer
        await super()._Connection__writer(writer)  # type: ignore[misc]


# What aiormq lets through when the peer goes away in the middle of the handshake, as a broker does that is
# just starting.
HANDSHAKE_ERRORS = (StopAsyncIteration, EOFError)


class Connection:
    """An open connection. `lost` ends (with None) when it is gone, whoever ended it."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
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
        return self._connection.is_blocked

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

    def tap(
        self, channel: Channel, on_content: OnContent, on_confirm: OnConfirm | None = None
    ) -> FrameInterceptor:
        """Have what concerns messages on `channel` handed over at once (frames.py), until it closes. The
        two must be quick and must not raise."""
        taps, number = self._connection.taps, channel.number
        tap = taps[number] = FrameInterceptor(on_content, on_confirm)

        def remove(_: object) -> None:
            tap.is_open = False
            if taps.get(number) is tap:
                del taps[number]

        channel.closing.add_done_callback(remove)
        return tap

    def write(self, frames: bytes) -> None:
        """Write whole frames now, ahead of what the client has queued. Nothing on a lost connection."""
        writer = self._connection.writer
        if writer is not None and not writer.is_closing():
            writer.write(frames)

    async def close(self) -> None:
        """Close it; never raises, and gives up after a few seconds on a peer that is stuck."""
        with contextlib.suppress(BrokerUnreachable), broker_errors("closing"):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._connection.close()
        writer = self._connection.writer
        if writer is not None and not self._connection.closing.done():
            writer.transport.abort()
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
    connection = _Connection(
        url.with_query(heartbeat=heartbeat),
        context=_tls(settings) if url.scheme == "amqps" else None,
        client_properties={"connection_name": f"ott-worker {purpose}", "product": "ott-worker"},
    )
    where = f"{url.host}:{url.port or (5671 if url.scheme == 'amqps' else 5672)}"
    with broker_errors(f"RabbitMQ at {where} cannot be reached", *HANDSHAKE_ERRORS):
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()
    return Connection(connection)


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
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or 'handshake'} (check OTT_AMQP_CA_FILE and the host name)"
    text = str(cause.args[-1] if cause.args else cause)
    if "Connect call failed" in text:
        return "connection refused"
    return _plain(text) or type(error).__name__


_NO_VHOST = "the virtual host does not exist or is not allowed (check OTT_AMQP_URL)"
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (asyncio.CancelledError, "the connection was lost"),
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "the host name is not known"),
    (
        aiormq.exceptions.ProbableAuthenticationError,
        "user name, password or virtual host refused (check OTT_AMQP_URL)",
    ),
    (aiormq.exceptions.ConnectionNotAllowed, _NO_VHOST),
    (aiormq.exceptions.InvalidFrameError, _NO_VHOST),  # how the client tells of a refused connection.open
)


def _plain(text: str) -> str:
    line = " ".join(text.split())
    return "connection lost" if "://" in line else line[:200]
