"""Why RabbitMQ could not be reached or what ended a connection, in a few words and without a secret."""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Iterator

import aiormq.exceptions
import pamqp.exceptions

from worker.amqp.transport import ProtocolViolation
from worker.errors import BrokerUnreachable

ACCESS_REFUSED = 403  # reply code
REFUSED = "connection refused"
RESET = "the connection was reset"

AMQP_ERRORS = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.PublishError,
    pamqp.exceptions.PAMQPException,
    ConnectionError,
    OSError,
    RuntimeError,  # aiormq's word for "the connection is closed already"
)


@contextlib.contextmanager
def broker_errors(what: str) -> Iterator[None]:
    """Translate what the client raises into BrokerUnreachable, which begins with `what`. The client library
    cancels its own calls when their connection ends. Such a cancellation is translated too; one of this task
    is not."""
    try:
        yield
    except (TimeoutError, asyncio.CancelledError, *AMQP_ERRORS) as error:
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        raise BrokerUnreachable(f"{what}: {describe(error)}") from None


def is_cancelled() -> bool:
    """Whether somebody cancelled the current task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def describe(error: BaseException) -> str:
    """An error of the client library in a few words."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    for kind, words in _WORDS:
        if isinstance(cause, kind):
            return words
    if isinstance(cause, ssl.SSLError):
        return _describe_tls(cause.reason or "handshake")
    if isinstance(error, EOFError | StopAsyncIteration) or isinstance(error.__cause__, EOFError):
        return (
            "it ended the connection without a word: either the port speaks TLS "
            "(use amqps:// in OTT_AMQP_URL), or the broker is just starting"
        )
    text = str(cause.args[-1] if cause.args else cause)
    if "Connect call failed" in text:
        return REFUSED
    if isinstance(cause, ProtocolViolation):
        return text
    line = " ".join(text.split())
    return "connection lost" if "://" in line or not line else line[:200]


# From RabbitMQ 4.0 on, publishers can speak AMQP 1.0. Properties of a type that AMQP 0-9-1 does not have (a
# UUID, a decimal, a single character) end the connection of the consumer that such a message is delivered to.
UNDELIVERABLE = (
    "RabbitMQ ended the connection with an internal error, as it does for a message of an AMQP 1.0 publisher "
    "with a property that AMQP 0-9-1 does not have, such as a UUID"
)

_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (asyncio.CancelledError, "the connection was lost"),
    (ConnectionRefusedError, REFUSED),
    (socket.gaierror, "the host name is not known"),
    (ConnectionResetError, RESET),
    (aiormq.exceptions.ConnectionInternalError, UNDELIVERABLE),
)


def _describe_tls(reason: str) -> str:
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"):
        return "the port does not speak TLS: use amqp://, or the TLS port, usually 5671 (check OTT_AMQP_URL)"
    if "CERTIFICATE_REQUIRED" in reason:
        return "it wants a client certificate (set OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE)"
    if "VERIFY" not in reason and "ALERT" in reason:
        return f"TLS failed: {reason} (check OTT_AMQP_CERT_FILE)"
    return f"TLS failed: {reason} (check OTT_AMQP_CA_FILE and the host name)"


def describe_refusal(code: int, text: str, user: str, vhost: str) -> str:
    """Why RabbitMQ refused a new connection, from its Connection.Close."""
    limit = re.search(r"(?:(node|user) )?connection limit \((\d+)\) is reached", text)
    if limit:
        whose = {"node": "this node", "user": "this user"}.get(limit[1], f"the virtual host {vhost}")
        return (
            f"a connection limit is reached: {limit[2]} for {whose} (close connections, or raise it with "
            "rabbitmqctl set_vhost_limits or set_user_limits)"
        )
    if code == ACCESS_REFUSED:
        return "user name or password refused (check OTT_AMQP_URL)"
    if "is down" in text:
        return f"the virtual host {vhost} is down on this node (see rabbitmq-diagnostics)"
    if "not found" in text:
        return f"the virtual host {vhost} does not exist (check the end of OTT_AMQP_URL)"
    if "refused for user" in text:
        return (
            f"user {user} may not use the virtual host {vhost} "
            "(check OTT_AMQP_URL, or grant it with rabbitmqctl set_permissions)"
        )
    return " ".join(text.split())[:200]
