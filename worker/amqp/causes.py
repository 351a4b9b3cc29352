"""Why RabbitMQ cannot be reached or why a connection ended, in a few words and without a secret."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum

import aiormq.exceptions
import pamqp.exceptions

from worker.errors import BrokerUnreachable, Problem, TopologyError

ACCESS_REFUSED = 403  # reply code


class Cause(StrEnum):
    """The causes that code distinguishes, each with its text."""

    REFUSED = "connection refused"
    RESET = "the connection was reset"
    # amqp10.py explains it.
    UNDELIVERABLE = (
        "RabbitMQ ended the connection with an internal error, as it does for a message of an AMQP 1.0 "
        "publisher with a property that AMQP 0-9-1 does not have, such as a UUID"
    )


AMQP_ERRORS = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.PublishError,
    pamqp.exceptions.PAMQPException,
    ConnectionError,
    OSError,
    RuntimeError,  # from aiormq, if the connection is already closed
)


@contextlib.contextmanager
def broker_errors(what: str, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Translate the client library's errors, except those in `passes`, into BrokerUnreachable; its text
    begins with `what`. The library cancels its own calls when their connection ends; that cancellation is
    translated too. A cancellation of this task is raised again, even if aiormq has replaced it by the
    connection's error."""
    try:
        yield
    except passes:
        raise
    except (TimeoutError, asyncio.CancelledError, *AMQP_ERRORS) as error:
        if is_cancelled():
            raise asyncio.CancelledError from None
        raise BrokerUnreachable(f"{what}: {describe(error)}") from None
    except Exception as error:
        if type(error) is Exception:  # from aiormq, if a connection ended without a reason
            raise BrokerUnreachable(f"{what}: the connection was lost") from None
        raise


@contextlib.contextmanager
def object_errors(name: str, missing: str, forbidden: str) -> Iterator[None]:
    """Translate the error by which the broker closed a channel over the object `name` into TopologyError.
    `missing` and `forbidden` say what to do."""
    try:
        yield
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        if "home node" in str(error):  # the queue exists, but its node is down
            raise BrokerUnreachable(
                f"The {name} exists, but its RabbitMQ node is down: see rabbitmq-diagnostics"
            ) from None
        raise TopologyError(f"The {name} is missing: {missing}") from None
    except aiormq.exceptions.ChannelAccessRefused:
        raise TopologyError(f"The {name} {forbidden}", Problem.FORBIDDEN) from None
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        text = " ".join(str(error.args[-1] if error.args else error).split())
        differs = text.removeprefix("PRECONDITION_FAILED - ")[:300]
        advice = "Stop the workers, delete it once it is empty, and start one"
        raise TopologyError(f"The {name} exists but differs: {differs}. {advice}", Problem.DIFFERS) from None


def is_cancelled() -> bool:
    """Whether the current task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def describe(error: BaseException) -> str:
    """An error of the client library in a few words."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError | EOFError) else error
    for kind, words in _WORDS:
        if isinstance(cause, kind):
            return words
    if isinstance(cause, ssl.SSLError):
        if cause.reason in (
            "WRONG_VERSION_NUMBER",
            "RECORD_LAYER_FAILURE",
            "UNKNOWN_PROTOCOL",
            "HTTP_REQUEST",
        ):
            return (
                "the port does not speak TLS: use amqp://, or the TLS port, usually 5671 (check OTT_AMQP_URL)"
            )
        check = "check the host name, OTT_AMQP_CA_FILE and OTT_AMQP_CERT_FILE"
        return f"TLS failed: {cause.reason or 'handshake'} ({check})"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    line = " ".join(str(cause.args[-1] if cause.args else cause).split())
    return "connection lost" if "://" in line or not line else line[:200]


_IN_THE_HANDSHAKE = (
    "the broker closed the connection during the handshake: the port may expect TLS (amqps:// in "
    "OTT_AMQP_URL), or the broker is still starting"
)
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "no answer in time"),
    (asyncio.CancelledError, "the connection was lost"),
    (ConnectionRefusedError, Cause.REFUSED),
    (socket.gaierror, "the host name is not known"),
    (ConnectionResetError, Cause.RESET),
    (EOFError, _IN_THE_HANDSHAKE),
    (StopAsyncIteration, _IN_THE_HANDSHAKE),
    (aiormq.exceptions.ConnectionInternalError, Cause.UNDELIVERABLE),
)


def describe_refusal(code: int, text: str) -> str:
    """Why RabbitMQ refused a new connection, from its Connection.Close."""
    if code == ACCESS_REFUSED:
        return "user name or password refused (check OTT_AMQP_URL)"
    words = " ".join(text.removeprefix("NOT_ALLOWED - ").split())[:200]
    return f"{words} (check OTT_AMQP_URL, and the permissions and limits in RabbitMQ)"
