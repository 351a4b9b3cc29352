"""Confirmed, mandatory publishing on a connection of its own (contract §4, §5).

Each publish is a future, done when the broker has confirmed the message. Where the connection is lost, the
queue is full or a confirm never comes, the message is published again, so it may arrive twice and is never
lost. Only an external publish, to a queue that a `reply_to` names, can fail: the queue does not exist, or
does not take the message within a minute.
"""

import asyncio
import base64
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

import aiormq.exceptions

from worker.amqp.confirm_channel import ConfirmChannel, Open, Poisonous, error_of, is_blame, publish_apart
from worker.amqp.connection import Connection, cancel_all, connect, connected, keep_connected
from worker.amqp.ledger import Message, Publish
from worker.backoff import REPUBLISH
from worker.errors import BrokerUnreachable, PublishRefused, QueueFull, Unroutable, WorkerError
from worker.events import EventListener
from worker.settings import Settings

GIVE_UP_AFTER: Final = 2  # overdue confirms of one external message
RENEW_STREAM_AFTER: Final = 2  # overdue confirms of one record: 4.3 confirms on a new channel at once
STUCK_AFTER: Final = 6  # refusals in a row of one message, about 6 s
DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to."
_PIDS: Final = {b"\x83X": 12, b"\x83g": 9}  # its external format, and the bytes that follow the node's name
_NAMES: Final = {b"d": 2, b"v": 2, b"s": 1, b"w": 1}  # an atom's format, and the bytes of its length


class KeptChannel(ConfirmChannel):
    """A channel that is opened again whenever it closes, and publishes again what has no outcome.

    Where RabbitMQ closed it, or its connection, for one of the publishes, those that were under way are
    published apart, and all others go on at once. The one to blame is refused, or published in its reduced
    form (contract §2)."""

    def __init__(self, name: str, events: EventListener, apart: Open, *, is_for_stream: bool = False) -> None:
        """`apart` opens a connection for publishes of which one has ended its own."""
        super().__init__(name, events, is_for_stream=is_for_stream)
        self._apart = apart
        self.had_suspects = False  # when it closed last

    async def keep(self, connection: Connection) -> None:
        """Keep a channel open on `connection` and write what is waiting, until cancelled."""
        self.had_suspects = False
        while connection.is_open:
            with contextlib.suppress(BrokerUnreachable):
                await self.serve(connection)
            await asyncio.sleep(REPUBLISH.first)

    def _late(self, publish: Publish) -> None:
        """Publish it again: a half-dead peer may never confirm it."""
        if publish.message.external and publish.overdue >= GIVE_UP_AFTER:
            publish.fail(QueueFull("the queue does not confirm"))
        else:
            self._is_stuck |= self.is_for_stream and publish.overdue >= RENEW_STREAM_AFTER
            self._queue(publish)

    def _turned_down(self, publish: Publish, error: WorkerError) -> None:
        if publish.message.external:
            publish.fail(error)
            return
        # One of our own queues is full or gone. The request stays in its queue until this is corrected.
        self.events.publish_turned_down(publish.message.queue, str(error))
        self._is_blocked(publish.message, str(error))
        # RabbitMQ counts what goes into a stream that is declared anew from 1 again, but the channel goes on
        # counting, and the numbers must not differ (see Publisher).
        is_gone = isinstance(error, Unroutable)
        self._is_stuck |= self.is_for_stream if is_gone else publish.refusals >= STUCK_AFTER
        self._later(publish, self._queue)

    def _later(self, publish: Publish, again: Callable[[Publish], object]) -> None:
        wait = REPUBLISH.ceiling(publish.refusals + 1)
        publish.refusals = min(publish.refusals + 1, 10)

        def retry() -> None:
            if not publish.future.done():
                again(publish)

        asyncio.get_running_loop().call_later(wait, retry)

    def _lost(self, under_way: list[Publish], reason: BaseException | None) -> None:
        """Find out what to blame, where the broker closed the channel or the connection for one of the
        publishes. It is none of a stream's: no publisher's bytes are in its messages."""
        if reason is not None and not isinstance(reason, aiormq.exceptions.ConnectionClosed):
            told = " ".join(str(part) for part in reason.args if part is not None)
            self.events.channel_closed(self.name, " ".join(told.split())[:200] or "no reason was given")
        is_for_cause = self._connection is not None and self._connection.was_closed_for_cause
        is_blamed = is_for_cause or is_blame(reason)
        self.had_suspects = is_blamed and not self.is_for_stream and bool(under_way)
        if self.had_suspects:
            self._run(self._publish_apart(under_way))
            return
        if (error := error_of(reason)) is not None:
            for publish in under_way:
                if publish.message.external:
                    publish.fail(error)
        self._ledger.put_back(under_way)

    async def _publish_apart(self, suspects: list[Publish]) -> None:
        by_message = {publish.message: publish for publish in suspects}

        def settle(message: Message, outcome: WorkerError | None) -> None:
            publish = by_message.pop(message)
            if isinstance(outcome, Poisonous):
                self._poisonous(publish)
            else:
                self.confirmed(publish, outcome)

        try:
            await publish_apart(self._apart, list(by_message), settle)
        finally:
            for publish in by_message.values():
                self._queue(publish)

    def _poisonous(self, publish: Publish) -> None:
        """RabbitMQ does not take this message, whatever else is published."""
        message = publish.message
        if message.external:
            publish.fail(PublishRefused("the broker does not take this message"))
        else:
            self.events.publish_turned_down(message.queue, "RabbitMQ closes the connection for this message")
            reduced = message.reduced or message.properties.reduced()
            publish.message = replace(message, properties=reduced, reduced=reduced)
            # Apart again: nothing shows yet that RabbitMQ takes this one.
            self._later(publish, lambda publish: self._run(self._publish_apart([publish])))


class Publisher:
    """Publishes on its own connection, which it opens again for as long as it runs.

    It keeps the order of what is sent on each of its channels. One is for our own queues, one for queues that
    requesters name, so that a forbidden or broken `reply_to` disturbs nothing else, and one for each stream:
    when a stream's leader dies, RabbitMQ before 4.0 sends again what is unconfirmed, by the channel's numbers
    instead of the stream's. Where they differ, further records are confirmed and not written.
    Direct replies have a connection of their own, because RabbitMQ ends the connection if it cannot decode an
    address. When RabbitMQ ends a connection for one of the publishes on it, the next one is opened at once,
    and what was under way is published apart.
    """

    def __init__(self, settings: Settings, events: EventListener, streams: Iterable[str] = ()) -> None:
        """`streams` are the names of those to publish to."""
        self._settings = settings
        self._events = events
        apart = partial(connect, settings, "publisher apart")
        self._own = KeptChannel("own", events, apart)
        self._external = KeptChannel("external", events, apart)
        self._streams = {name: KeptChannel(name, events, apart, is_for_stream=True) for name in streams}
        self._direct = KeptChannel("direct replies", events, apart)
        self._served = (self._own, self._external, *self._streams.values())
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def ready(self) -> bool:
        """Whether the channel for our own queues is open."""
        return self._own.is_open

    @property
    def has_failed(self) -> bool:
        """Whether a defect ended it: nothing is published any more."""
        return any(task.done() and not task.cancelled() for task in self._tasks.values())

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
        self._serve("publisher", self._served, self._events)

    async def stop(self) -> None:
        """Close the connections and cancel what is not confirmed."""
        await cancel_all(*self._tasks.values())
        for channel in (*self._served, self._direct):
            await channel.close()

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future is done once the broker has confirmed; that of an external message may raise
        Unroutable or PublishRefused instead. Cancel the future to give the message up."""
        if message.external and message.routing_key.startswith(DIRECT_REPLY_TO):
            if not is_well_formed(message.routing_key):
                refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                refused.set_exception(PublishRefused("the reply address is malformed"))
                return refused
            if "direct replies" not in self._tasks:
                self._serve("direct replies", [self._direct], EventListener())
            return self._direct.send(message)
        if message.external:
            return self._external.send(message)
        return self._streams.get(message.routing_key, self._own).send(message)

    def _serve(self, purpose: str, channels: Sequence[KeptChannel], events: EventListener) -> None:
        """Open a connection and serve the channels on it, again and again, in the background."""

        async def use(connection: Connection) -> None:
            events.publisher_connected()
            async with asyncio.TaskGroup() as group:
                kept = [group.create_task(channel.keep(connection)) for channel in channels]
                await connection.lost
                for task in kept:
                    task.cancel()
            if not (connection.was_closed_for_cause and any(each.had_suspects for each in channels)):
                raise BrokerUnreachable("connection lost")
            events.publisher_lost("connection lost")  # reconnect at once: suspects go by other connections

        serve = keep_connected(
            partial(connected, self._settings, purpose), use, lambda error: events.publisher_lost(str(error))
        )
        self._tasks[purpose] = asyncio.create_task(serve, name=purpose)


def is_well_formed(address: str) -> bool:
    """Whether RabbitMQ can decode the address of a direct reply: the prefix, and `PID.KEY`, both in base64.
    PID is an Erlang process id with the name of a node in it (the same on 3.10 and 4.3). Each one that it
    cannot decode costs RabbitMQ 3.10 a connection."""
    parts = address.removeprefix(DIRECT_REPLY_TO).split(".")
    try:
        pid, key = (base64.b64decode(part, validate=True) for part in parts)
        start, end = 3 + _NAMES[pid[2:3]], len(pid) - _PIDS[pid[:2]]
    except (ValueError, KeyError):
        return False
    name = pid[start:end]
    return bool(key) and b"@" in name and len(name) == int.from_bytes(pid[3:start])
