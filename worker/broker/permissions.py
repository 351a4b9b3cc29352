"""Finds out by trying what this user may do at the broker. Nothing is changed, and nothing is published.

RabbitMQ checks permissions before all else. So each attempt is invalid for another reason too (a nonsensical
argument, a transaction that is rolled back). The error shows whether the permission was missing.
"""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import aiormq.exceptions

from worker.amqp.causes import broker_errors
from worker.amqp.connection import Connection, RawChannel, no_callback
from worker.broker.topology import Topology
from worker.contract.words import CONTROL_KEY, REPLAY_KEY
from worker.settings import Settings

ANSWER_TIMEOUT = 15.0  # seconds
DEFAULT_EXCHANGE = "amq.default"  # its name in permissions

Verb = Literal["configure", "write", "read"]


@dataclass(frozen=True, slots=True)
class Right:
    """To do something with one object; with a routing key, to publish by it to a topic exchange."""

    verb: Verb
    name: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.name}" + (f" with the routing key {self.key}" if self.key else "")


def workers_rights(settings: Settings) -> list[Right]:
    """What the worker does."""
    names = Topology(settings.prefix)
    streams = [names.control] + [names.journal] * settings.journal
    partitions = names.partition_objects(settings.partitions)
    if partitions:
        partitions.append(names.status)  # by which it knows of the other workers
    rights = [Right("read", name) for name in (names.requests, *streams, *partitions)]
    rights += [Right("write", DEFAULT_EXCHANGE), Right("write", names.dead)]
    if settings.declare:
        queues = (names.requests, names.replies, names.dead, names.status, *streams, *partitions)
        rights += [Right("configure", name) for name in queues]
    return rights


def operators_rights(settings: Settings) -> list[Right]:
    """What the commands of an operator do."""
    names = Topology(settings.prefix)
    streams = [names.status, names.control] + [names.journal] * settings.journal
    return [
        *(Right("read", name) for name in (names.dead, *streams)),
        *(Right("write", names.entry, key) for key in (REPLAY_KEY, CONTROL_KEY)),
        Right("configure", f"{names.dead}.lock"),
    ]


async def lacking(connection: Connection, rights: Iterable[Right]) -> list[Right]:
    """The rights that this user lacks. A missing object counts as permitted. Raises BrokerUnreachable."""
    return [right for right in rights if not await _has(connection, right)]


def patterns(rights: Iterable[Right]) -> str:
    """What to grant, as regular expressions of RabbitMQ's permissions."""
    names: dict[Verb, list[str]] = {}
    keys: list[str] = []
    for right in rights:
        if right.name not in names.setdefault(right.verb, []):
            names[right.verb].append(right.name)
        keys += [right.key] if right.key else []
    granted = [f"{verb} {_pattern(of_verb)}" for verb, of_verb in names.items()]
    return ", ".join(granted) + (f" (topic permission: write {_pattern(keys)})" if keys else "")


def _pattern(names: list[str]) -> str:
    return f"^({'|'.join(re.escape(name) for name in names)})$"


async def _has(connection: Connection, right: Right) -> bool:
    channel = await connection.raw_channel()
    with broker_errors(f"Whether this user may {right} could not be found out"):
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await _try(channel, right)
                await channel.close()
        except aiormq.exceptions.ChannelAccessRefused:
            return False
        except aiormq.exceptions.AMQPChannelError:
            return True  # turned down for another reason
    return True


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
