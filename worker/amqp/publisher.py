"""Confirmed, mandatory publishing on a connection of its own (contract §4, §5).

Each publish is a future, done when the broker has confirmed the message. Where the connection is lost, the
queue is full or a confirm never comes, the message is published again, so it may arrive twice and is never
lost. Only an external publish, to a queue that somebody else named, can fail: the queue does not exist, or
does not take the message within a minute.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from worker.amqp.confirm_channel import RETRY, ConfirmChannel, Message
from worker.amqp.connection import Connection, connect
from worker.errors import BrokerUnreachable, TopologyError
from worker.events import EventListener
from worker.settings import Settings

STABLE_AFTER: Final = 5.0  # seconds; the loss of a connection that lasted longer counts as the first one
REDECLARE_INTERVAL: Final = 1.0  # seconds

Declare = Callable[[Connection, Settings], Awaitable[None]]
"""Declares our own objects. Raises TopologyError or BrokerUnreachable."""


class Publisher:
    """Publishes on its own connection, which it opens again for as long as it runs.

    It keeps the order of what is sent on each of its two channels: one for our own queues, one for queues
    that requesters name, so that a forbidden or broken `reply_to` disturbs nothing else.
    """

    def __init__(self, settings: Settings, events: EventListener, declare: Declare) -> None:
        self._settings = settings
        self._events = events
        self._declare = declare
        self._own = ConfirmChannel("own", events)
        self._external = ConfirmChannel("external", events)
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a channel stands open."""
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
        return len(self._own) + len(self._external)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._task = asyncio.create_task(self._run(), name="publisher")

    async def stop(self) -> None:
        """Close the connection and cancel what is not confirmed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for channel in (self._own, self._external):
            channel.abandon()

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future is done once the broker has confirmed; that of an external message may raise
        Unroutable or PublishRefused instead. Cancel the future to give the message up."""
        return (self._external if message.external else self._own).send(message)

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = None
            try:
                connection = await connect(self._settings, "publisher")
                self._events.publisher_connected()
                began = asyncio.get_running_loop().time()
                await self._serve(connection)
                if asyncio.get_running_loop().time() - began > STABLE_AFTER:
                    failures = 0
                await _pause(failures)
                failures = min(failures + 1, 10)
            except Exception as error:
                # Any error: without its publisher the worker would hold its requests for good.
                known = isinstance(error, BrokerUnreachable)
                self._events.publisher_lost(str(error) if known else type(error).__name__)
                await _pause(failures)
                failures = min(failures + 1, 10)
            finally:
                if connection is not None:
                    await connection.close()

    async def _serve(self, connection: Connection) -> None:
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(channel.serve(connection)) for channel in (self._own, self._external)]
            served.append(group.create_task(self._redeclare(connection)))
            await connection.lost
            for task in served:
                task.cancel()
        self._events.publisher_lost("connection lost")

    async def _redeclare(self, connection: Connection) -> None:
        """Declare our own objects again when a publish finds one of them gone."""
        while True:
            await self._own.missing.wait()
            self._own.missing.clear()
            try:
                await self._declare(connection, self._settings)
            except (TopologyError, BrokerUnreachable) as error:
                self._events.topology_wrong(str(error))
            await asyncio.sleep(REDECLARE_INTERVAL)


async def _pause(failures: int) -> None:
    """Wait before connecting again, longer from failure to failure."""
    await asyncio.sleep(random.uniform(0, min(RETRY[1], 0.05 * 2**failures)))  # noqa: S311
