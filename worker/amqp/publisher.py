"""Confirmed, mandatory publishing on a connection of its own (contract §4, §5).

Each publish is a future that is done when the broker has confirmed the message. If the connection is lost,
the queue is full or a confirm does not arrive, the message is published again: it may arrive twice, but is
never lost. Only an external publish, to a queue that a `reply_to` names, can fail: the queue does not exist,
rejects the message, or does not confirm it within a minute."""

import asyncio
import base64
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

import aiormq.exceptions

from worker.amqp.confirm_channel import ConfirmChannel, Open, Poisonous, error_of, is_blame, publish_isolated
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
_PIDS: Final = {b"\x83X": 12, b"\x83g": 9}  # a PID's external format; bytes after the node's name
_NAMES: Final = {b"d": 2, b"v": 2, b"s": 1, b"w": 1}  # an atom's external format; bytes of its length


class KeptChannel(ConfirmChannel):
    """A channel that reopens whenever it closes, and republishes what has no outcome.

    If RabbitMQ closed it, or its connection, because of a message, the publishes in flight are published in
    isolation, and all others at once. The poisonous one is refused, or published in its reduced form
    (contract §2)."""

    def __init__(
        self, name: str, events: EventListener, isolated: Open, *, is_for_stream: bool = False
    ) -> None:
        """`isolated` opens a connection to publish suspects on."""
        super().__init__(name, events, is_for_stream=is_for_stream)
        self._isolated = isolated
        self.had_suspects = False  # when it last closed

    async def keep(self, connection: Connection) -> None:
        """Keep a channel open on `connection` and write waiting publishes, until the connection is lost."""
        self.had_suspects = False
        while connection.is_open:
            with contextlib.suppress(BrokerUnreachable):
                await self.serve(connection)
            await asyncio.sleep(REPUBLISH.first)

    def _late(self, publish: Publish) -> None:
        if publish.message.external and publish.overdue >= GIVE_UP_AFTER:
            publish.fail(QueueFull("the queue does not confirm"))
        else:
            self._is_stuck |= self.is_for_stream and publish.overdue >= RENEW_STREAM_AFTER
            self._queue(publish)

    def _turned_down(self, publish: Publish, error: WorkerError) -> None:
        if publish.message.external:
            publish.fail(error)
            return
        # A queue of the worker is full or missing. The request stays in its queue until this is corrected.
        self.events.publish_turned_down(publish.message.queue, str(error))
        self._is_blocked(publish.message, str(error))
        # In a stream that is declared again, RabbitMQ's numbers begin at 1, but the channel's continue. They
        # must not differ (see Publisher).
        is_missing = isinstance(error, Unroutable)
        self._is_stuck |= self.is_for_stream if is_missing else publish.refusals >= STUCK_AFTER
        self._later(publish, self._queue)

    def _later(self, publish: Publish, again: Callable[[Publish], object]) -> None:
        wait = REPUBLISH.ceiling(publish.refusals + 1)
        publish.refusals = min(publish.refusals + 1, 10)

        def retry() -> None:
            if not publish.future.done():
                again(publish)

        asyncio.get_running_loop().call_later(wait, retry)

    def _lost(self, in_flight: list[Publish], reason: BaseException | None) -> None:
        """Isolate the publishes, if the broker closed the channel or connection because of one of them. A
        record of a stream never is the cause: it holds no publisher's bytes."""
        if reason is not None and not isinstance(reason, aiormq.exceptions.ConnectionClosed):
            text = " ".join(str(part) for part in reason.args if part is not None)
            self.events.channel_closed(self.name, " ".join(text.split())[:200] or "no reason was given")
        is_for_cause = self._connection is not None and self._connection.was_closed_for_cause
        is_blamed = is_for_cause or is_blame(reason)
        self.had_suspects = is_blamed and not self.is_for_stream and bool(in_flight)
        if self.had_suspects:
            self._run(self._publish_isolated(in_flight))
            return
        if (error := error_of(reason)) is not None:
            for publish in in_flight:
                if publish.message.external:
                    publish.fail(error)
        self._ledger.put_back(in_flight)

    async def _publish_isolated(self, suspects: list[Publish]) -> None:
        by_message = {publish.message: publish for publish in suspects}

        def settle(message: Message, outcome: WorkerError | None) -> None:
            publish = by_message.pop(message)
            if isinstance(outcome, Poisonous):
                self._poisonous(publish)
            else:
                self.confirmed(publish, outcome)

        try:
            await publish_isolated(self._isolated, list(by_message), settle)
        finally:
            for publish in by_message.values():
                self._queue(publish)

    def _poisonous(self, publish: Publish) -> None:
        """RabbitMQ closes every connection on which this message is published."""
        message = publish.message
        if message.external:
            publish.fail(PublishRefused("the broker does not accept this message"))
        else:
            self.events.publish_turned_down(message.queue, "RabbitMQ closes the connection for this message")
            reduced = message.reduced or message.properties.reduced()
            publish.message = replace(message, properties=reduced, reduced=reduced)
            # In isolation again: RabbitMQ may not accept the reduced form either.
            self._later(publish, lambda publish: self._run(self._publish_isolated([publish])))


class Publisher:
    """Publishes on its own connection, and reconnects until it is stopped.

    Each channel keeps the order of its publishes. One is for the worker's own queues, one for queues that a
    `reply_to` names, so that a forbidden or broken one disturbs nothing else, and one for each stream: when a
    stream's leader dies, RabbitMQ before 4.0 sends unconfirmed records again by the channel's numbers instead
    of the stream's. If these differ, it confirms further records without writing them.
    Direct replies have their own connection, because RabbitMQ closes it if it cannot decode an address. When
    RabbitMQ closes a connection because of a message, the next one is opened at once, and the publishes in
    flight are published in isolation."""

    def __init__(self, settings: Settings, events: EventListener, streams: Iterable[str] = ()) -> None:
        """`streams` are the names of the streams to publish to."""
        self._settings = settings
        self._events = events
        isolated = partial(connect, settings, "publisher of suspects")
        self._own = KeptChannel("own", events, isolated)
        self._external = KeptChannel("external", events, isolated)
        self._streams = {name: KeptChannel(name, events, isolated, is_for_stream=True) for name in streams}
        self._direct = KeptChannel("direct replies", events, isolated)
        self._served = (self._own, self._external, *self._streams.values())
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def ready(self) -> bool:
        """Whether the channel for the worker's own queues is open."""
        return self._own.is_open

    @property
    def has_failed(self) -> bool:
        """Whether a defect has ended a publishing task."""
        return any(task.done() and not task.cancelled() for task in self._tasks.values())

    @property
    def confirmed_at(self) -> float:
        """Loop time of the last confirm, or of the channel's opening."""
        return self._own.confirmed_at

    @property
    def waiting(self) -> int:
        """Unconfirmed messages."""
        return sum(len(channel) for channel in (*self._served, self._direct))

    @property
    def blocked(self) -> list[tuple[str, str, datetime]]:
        """The worker's own queues that accept no messages: name, why, and since when."""
        channels = (self._own, *self._streams.values())
        return sorted((queue, *blocked) for channel in channels for queue, blocked in channel.blocked.items())

    def start(self) -> None:
        """Connect and publish in the background."""
        self._serve("publisher", self._served, self._events)

    async def stop(self) -> None:
        """Close the connections, and cancel unconfirmed publishes."""
        await cancel_all(*self._tasks.values())
        for channel in (*self._served, self._direct):
            await channel.close()

    def send(self, message: Message) -> "asyncio.Future[None]":
        """Publish. The future is done when the broker has confirmed. For an external message it may raise
        Unroutable or PublishRefused instead. Cancel the future to abandon the message."""
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
        """Keep a connection open and serve the channels on it, in the background."""

        async def use(connection: Connection) -> None:
            events.publisher_connected()
            async with asyncio.TaskGroup() as group:
                kept = [group.create_task(channel.keep(connection)) for channel in channels]
                await connection.lost
                for task in kept:
                    task.cancel()
            if not (connection.was_closed_for_cause and any(each.had_suspects for each in channels)):
                raise BrokerUnreachable("connection lost")
            events.publisher_lost("connection lost")  # reconnect at once: suspects use other connections

        serve = keep_connected(
            partial(connected, self._settings, purpose), use, lambda error: events.publisher_lost(str(error))
        )
        self._tasks[purpose] = asyncio.create_task(serve, name=purpose)


def is_well_formed(address: str) -> bool:
    """Whether RabbitMQ can decode the address of a direct reply: the prefix, and `PID.KEY`, both in base64.
    PID is an Erlang process id that contains a node's name (the same on 3.10 and 4.3). RabbitMQ 3.10 closes
    the connection for an address that it cannot decode."""
    parts = address.removeprefix(DIRECT_REPLY_TO).split(".")
    try:
        pid, key = (base64.b64decode(part, validate=True) for part in parts)
        start, end = 3 + _NAMES[pid[2:3]], len(pid) - _PIDS[pid[:2]]
    except (ValueError, KeyError):
        return False
    name = pid[start:end]
    return bool(key) and b"@" in name and len(name) == int.from_bytes(pid[3:start])
