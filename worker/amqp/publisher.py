"""Confirmed, mandatory publishing on a connection of its own (contract §4, §5).

Each publish is a future, done when the broker has confirmed the message. Where the connection is lost, the
queue is full or a confirm never comes, the message is published again, so it may arrive twice and is never
lost. Only an external publish, to a queue that somebody else named, can fail: the queue does not exist, or
does not take the message within a minute.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from worker.amqp.confirm_channel import ConfirmChannel
from worker.amqp.connection import Connection, connect
from worker.amqp.ledger import Message
from worker.amqp.reconnect import keep_connected
from worker.errors import BrokerUnreachable, PublishRefused, TopologyError
from worker.events import EventListener
from worker.settings import Settings

REDECLARE_INTERVAL: Final = 1.0  # seconds

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to."
_PIDS: Final = {b"\x83X": 12, b"\x83g": 9}  # its external format, and the bytes that follow the node's name
_NAMES: Final = {b"d": 2, b"v": 2, b"s": 1, b"w": 1}  # an atom's format, and the bytes of its length

Declare = Callable[[Connection, Settings], Awaitable[None]]
"""Declares our own objects. Raises TopologyError or BrokerUnreachable."""


class Publisher:
    """Publishes on its own connection, which it opens again for as long as it runs.

    It keeps the order of what is sent on each of its channels. One is for our own queues, one for queues that
    requesters name, so that a forbidden or broken `reply_to` disturbs nothing else, and one for each stream:
    when a stream's leader dies, RabbitMQ before 4.0 sends again what is unconfirmed, by the channel's numbers
    instead of the stream's. Where they differ, further records are confirmed and not written.
    Direct replies have a connection of their own, because RabbitMQ ends the connection if it cannot decode an
    address. When RabbitMQ ends a connection for one of the publishes on it, the next one is opened at once,
    and what was under way is published apart (confirm_channel.py).
    """

    def __init__(
        self, settings: Settings, events: EventListener, declare: Declare, streams: Iterable[str] = ()
    ) -> None:
        """`streams` are the names of those to publish to."""
        self._settings = settings
        self._events = events
        self._declare = declare
        self._missing = asyncio.Event()
        apart = partial(connect, settings, "publisher apart")
        self._own = ConfirmChannel("own", events, apart, self._missing)
        self._external = ConfirmChannel("external", events, apart)
        self._streams = {
            name: ConfirmChannel(name, events, apart, self._missing, is_for_stream=True) for name in streams
        }
        self._direct = ConfirmChannel("direct replies", events, apart)
        self._served = (self._own, self._external, *self._streams.values())
        self._task: asyncio.Task[None] | None = None
        self._direct_task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether the channel for our own queues is open."""
        return self._own.is_open

    @property
    def has_failed(self) -> bool:
        """Whether a defect ended it: nothing is published any more."""
        return self._task is not None and self._task.done() and not self._task.cancelled()

    @property
    def confirmed_at(self) -> float:
        """Loop time of the last confirm, or of the channel's opening."""
        return self._own.confirmed_at

    @property
    def waiting(self) -> int:
        """Messages not confirmed yet."""
        return sum(len(channel) for channel in (*self._served, self._direct))

    @property
    def blocked(self) -> list[tuple[str, str, datetime]]:
        """The queues of ours that take nothing: their name, why, and since when."""
        channels = (self._own, *self._streams.values())
        return sorted((queue, *blocked) for channel in channels for queue, blocked in channel.blocked.items())

    def start(self) -> None:
        """Begin to connect, in the background."""
        serve = self._keep_serving("publisher", self._served, self._events)
        self._task = asyncio.create_task(serve, name="publisher")

    async def stop(self) -> None:
        """Close the connections and cancel what is not confirmed."""
        tasks = [task for task in (self._task, self._direct_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in (*self._served, self._direct):
            channel.abandon()

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future is done once the broker has confirmed; that of an external message may raise
        Unroutable or PublishRefused instead. Cancel the future to give the message up."""
        if message.external and message.routing_key.startswith(DIRECT_REPLY_TO):
            return self._send_direct(message)
        if message.external:
            return self._external.send(message)
        return self._streams.get(message.routing_key, self._own).send(message)

    def _send_direct(self, message: Message) -> "asyncio.Future[None]":
        if not is_well_formed(message.routing_key):
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(PublishRefused("the reply address is malformed"))
            return refused
        if self._direct_task is None:
            serve = self._keep_serving("direct replies", [self._direct], EventListener())
            self._direct_task = asyncio.create_task(serve, name="direct-replies")
        return self._direct.send(message)

    async def _keep_serving(
        self, purpose: str, channels: Sequence[ConfirmChannel], events: EventListener
    ) -> None:
        """Open a connection and serve the channels on it, again and again."""

        async def use(connection: Connection) -> None:
            events.publisher_connected()
            await self._serve(channels, connection)
            if connection.was_closed_for_cause and [c for c in channels if c.suspect()]:
                events.publisher_lost("connection lost")
                return  # at once: what is to blame goes elsewhere
            raise BrokerUnreachable("connection lost")

        await keep_connected(self._settings, purpose, use, lambda error: events.publisher_lost(str(error)))

    async def _serve(self, channels: Sequence[ConfirmChannel], connection: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(channel.serve(connection)) for channel in channels]
            served.append(group.create_task(self._redeclare(connection)))
            await connection.lost
            for task in served:
                task.cancel()

    async def _redeclare(self, connection: Connection) -> None:
        """Declare our own objects again when a publish finds one of them gone."""
        while True:
            await self._missing.wait()
            self._missing.clear()
            try:
                await self._declare(connection, self._settings)
            except (TopologyError, BrokerUnreachable) as error:
                self._events.topology_wrong(str(error))
            await asyncio.sleep(REDECLARE_INTERVAL)


def is_well_formed(address: str) -> bool:
    """Whether RabbitMQ can decode the address of a direct reply: the prefix, and `PID.KEY`, both in base64.
    PID is an Erlang process id with the name of a node in it (the same on 3.10 and 4.0)."""
    parts = address.removeprefix(DIRECT_REPLY_TO).split(".")
    if len(parts) != 2:
        return False
    try:
        pid, key = (base64.b64decode(part, validate=True) for part in parts)
    except (binascii.Error, ValueError):
        return False
    length_bytes = _NAMES.get(pid[2:3])
    if not key or pid[:2] not in _PIDS or length_bytes is None:
        return False
    length = int.from_bytes(pid[3 : 3 + length_bytes], "big")
    name = pid[3 + length_bytes : 3 + length_bytes + length]
    return b"@" in name and len(pid) == 3 + length_bytes + length + _PIDS[pid[:2]]
