"""What the worker requires of RabbitMQ (contract §1): its user's permissions, the version, and queue limits.

Permissions are tested by trying, without a change or a publish. RabbitMQ checks permissions first, so each
attempt is also invalid for another reason (an invalid argument, a transaction that is rolled back). The error
shows whether the permission is missing."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import aiormq.exceptions
from aiohttp import ClientError, ClientSession, ClientTimeout, encode_basic_auth
from yarl import URL

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Connection, RawChannel, no_callback, port_of, vhost_of
from worker.broker.topology import Topology
from worker.contract.words import CONTROL_KEY, REPLAY_KEY
from worker.errors import BrokerUnreachable
from worker.settings import Settings

ANSWER_TIMEOUT = 15.0  # seconds
DEFAULT_EXCHANGE = "amq.default"  # the default exchange in permissions

Verb = Literal["configure", "write", "read"]
TESTED = ((3, 10), (4, 0), (4, 3))
REALM = "RabbitMQ Management"
MANAGEMENT_TIMEOUT = 3.0  # seconds
MANAGEMENT = 10_000  # difference between the usual ports of the management plugin and of AMQP


class Right(NamedTuple):
    """A permission on one object; with a routing key, to publish with it to a topic exchange."""

    verb: Verb
    name: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.name}" + (f" with the routing key {self.key}" if self.key else "")


def workers_rights(settings: Settings) -> list[Right]:
    """The permissions that the worker needs."""
    names = Topology(settings.prefix)
    streams = [names.control] + [names.journal] * settings.journal
    partitions = names.partition_objects(settings.partitions)
    if partitions:
        partitions.append(names.status)  # to discover the other workers
    rights = [Right("read", name) for name in (names.requests, *streams, *partitions)]
    rights += [Right("write", DEFAULT_EXCHANGE), Right("write", names.dead)]
    if settings.declare:
        queues = (names.requests, names.replies, names.dead, names.status, *streams, *partitions)
        rights += [Right("configure", name) for name in queues]
    return rights


def operators_rights(settings: Settings) -> list[Right]:
    """The permissions that an operator's commands need."""
    names = Topology(settings.prefix)
    streams = [names.status, names.control] + [names.journal] * settings.journal
    return [
        *(Right("read", name) for name in (names.dead, *streams)),
        *(Right("write", names.entry, key) for key in (REPLAY_KEY, CONTROL_KEY)),
        Right("configure", f"{names.dead}.lock"),
    ]


async def lacking(connection: Connection, rights: Iterable[Right]) -> list[Right]:
    """The permissions that this user lacks, but for missing objects. Raises BrokerUnreachable."""
    missing = []
    for right in rights:
        channel = await connection.raw_channel()
        with broker_errors(f"The permission to {right} could not be checked"):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await _try(channel, right)
                    await channel.close()
            except aiormq.exceptions.ChannelAccessRefused:
                missing.append(right)
            except aiormq.exceptions.AMQPChannelError:
                pass  # the attempt failed for the other reason
            except TimeoutError:
                if connection.wire.is_blocked:
                    raise BrokerUnreachable("RabbitMQ accepts no messages: a memory or disk alarm") from None
                raise
    return missing


def patterns(rights: Iterable[Right]) -> str:
    """What to grant, as the regular expressions of RabbitMQ's permissions."""
    names: dict[str, dict[str, None]] = {}  # of objects by verb, and of routing keys
    for right in rights:
        names.setdefault(right.verb, {})[right.name] = None
        if right.key:
            names.setdefault("by the topic permission write", {})[right.key] = None
    return ", ".join(f"{what} ^({'|'.join(map(re.escape, each))})$" for what, each in names.items())


async def _try(channel: RawChannel, right: Right) -> None:
    match right.verb:
        case "read":
            await channel.basic_consume(right.name, no_callback, arguments={"x-priority": "none"})
        case "configure":
            await channel.queue_declare(right.name, durable=True, arguments={"x-max-length": "none"})
        case "write":
            await channel.tx_select()
            exchange = "" if right.name == DEFAULT_EXCHANGE else right.name
            await channel.basic_publish(b"", exchange=exchange, routing_key=right.key or uuid4().hex)
            await channel.tx_rollback()


def version_warnings(version: str) -> list[str]:
    """Warnings about a version of RabbitMQ."""
    numbers = version.split(".")[:2]
    if not all(part.isdecimal() for part in numbers) or len(numbers) < 2:
        return []
    number, warnings = (int(numbers[0]), int(numbers[1])), []
    if number not in TESTED:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        warnings.append(f"RabbitMQ {version} is not one of the tested versions ({tested})")
    if number < (3, 13):
        warnings.append(
            f"RabbitMQ {version}: let only trusted publishers send. One forged x-death header can end "
            "at-least-once dead-lettering on the whole node; from 3.13 on it cannot"
        )
    return warnings


def policy_warnings(queue: str, policy: Mapping[str, Any], hold_limit: float) -> list[str]:
    """Warnings about a queue's policy and arguments."""
    warnings = []
    if not policy.get("single-active-consumer"):
        warnings.append(f"{queue}: declared without x-single-active-consumer, so workers overtake each other")
    if policy.get("delayed-retry-type", "disabled") != "disabled":
        warnings.append(
            f"{queue}: a policy sets delayed-retry-type, so requeued requests lose their order: remove it"
        )
    timeout = policy.get("consumer-timeout")
    if isinstance(timeout, int | float) and timeout < hold_limit * 1000:
        warnings.append(
            f"{queue}: a policy sets consumer-timeout to {timeout / 1000:g} s, below OTT_HOLD_LIMIT "
            f"({hold_limit:g} s): RabbitMQ requeues requests that are still being processed"
        )
    return warnings


async def limits_of(url: URL, queue: str, context: ssl.SSLContext | None) -> Mapping[str, Any] | None:
    """The limits that a queue's policy and arguments set, from RabbitMQ's management API; None if it is not
    available to this user. `context` is for `amqps`."""
    where = URL.build(
        scheme="https" if url.scheme == "amqps" else "http",
        host=url.host or "",
        port=port_of(url) + MANAGEMENT,
        path=f"/api/queues/{quote(vhost_of(url), safe='')}/{quote(queue, safe='')}",
        encoded=True,
    )
    tls, user = context or True, encode_basic_auth(url.user or "guest", url.password or "guest")
    with contextlib.suppress(ClientError, TimeoutError, ValueError, LookupError):
        async with ClientSession(timeout=ClientTimeout(MANAGEMENT_TIMEOUT)) as session:
            # Send the password only to a server that asks for it in RabbitMQ's realm.
            async with session.get(where, ssl=tls, allow_redirects=False) as asked:
                if REALM not in asked.headers.get("WWW-Authenticate", ""):
                    return None
            async with session.get(
                where, ssl=tls, allow_redirects=False, headers={"Authorization": user}
            ) as answer:
                found = await answer.json()
        limits = {name.removeprefix("x-"): value for name, value in found["arguments"].items()}
        return limits | (found.get("effective_policy_definition") or {})
    return None
