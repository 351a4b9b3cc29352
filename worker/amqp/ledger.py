"""The publishes of one channel that are not confirmed: which are waiting, which are under way, and in which
order they go. No I/O and no clock."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from worker.amqp.properties import Properties
from worker.backoff import Backoff
from worker.errors import WorkerError


@dataclass(slots=True, eq=False)
class Message:
    """One message to publish. Without a `message_id` of its own it gets a fresh one. If RabbitMQ turns it
    down whatever the queue, it is published once more with the properties `reduced`, or with its headers of
    ours alone (contract §2)."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    external: bool = False  # to a queue that a `reply_to` names: may end in Unroutable or PublishRefused
    reduced: Properties | None = None

    @property
    def queue(self) -> str:
        """The queue that it goes to; an exchange of ours is named as its queue."""
        return self.routing_key or self.exchange


@dataclass(slots=True, eq=False)
class Publish:
    """A message until it is confirmed."""

    message: Message
    future: "asyncio.Future[None]"
    key: str = ""  # by which a returned message is recognized
    sent_at: float = 0.0
    refusals: int = 0
    overdue: int = 0

    def fail(self, error: WorkerError) -> None:
        """End this publish in an error, unless it has an outcome."""
        if not self.future.done():
            self.future.set_exception(error)


class Ledger:
    """Unconfirmed publishes: those that wait, in the order in which they go out, and those that are under
    way, by delivery tag."""

    def __init__(self) -> None:
        self.tag = 0  # of the last publish on the channel
        self._waiting: deque[Publish] = deque()
        self._sent: dict[int, Publish] = {}
        self._tags: dict[str, int] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._waiting)

    @property
    def oldest(self) -> Publish | None:
        """The oldest that is under way."""
        return next(iter(self._sent.values()), None)

    def add(self, publish: Publish) -> None:
        """Queue it behind those that wait."""
        self._waiting.append(publish)

    def put_back(self, publishes: Iterable[Publish]) -> None:
        """Queue publishes ahead of those that wait."""
        self._waiting.extendleft(reversed([*publishes]))

    def next(self) -> Publish | None:
        """Take the next one that waits and has no outcome: what was given up or refused is not sent."""
        while self._waiting:
            publish = self._waiting.popleft()
            if not publish.future.done():
                return publish
        return None

    def is_under_way(self, key: str) -> bool:
        return key in self._tags

    def sent(self, publish: Publish, now: float) -> None:
        """It has gone out, and has the next tag."""
        self.tag += 1
        self._tags[publish.key] = self.tag
        self._sent[self.tag] = publish
        publish.sent_at = now

    def answered(self, tag: int, *, multiple: bool = False) -> list[Publish]:
        """Take out those that the broker has answered for: one, or all up to it."""
        tags = [sent for sent in self._sent if sent <= tag] if multiple else [tag]
        publishes = [self._sent.pop(sent) for sent in tags if sent in self._sent]
        for publish in publishes:
            del self._tags[publish.key]
        return publishes

    def returned(self, key: str) -> list[Publish]:
        """Take out the one that the broker has returned. Its confirm, which follows, finds nothing."""
        return self.answered(self._tags.get(key, 0))

    def overdue(self, now: float, first: float, longest: float) -> list[Publish]:
        """Take out those that have waited too long for their confirm; the time doubles with each attempt."""
        late = []
        for tag, publish in list(self._sent.items()):
            if publish.sent_at + Backoff(first, longest).ceiling(publish.overdue + 1) > now:
                break
            publish.overdue += 1
            late += self.answered(tag)
        return late

    def put_off(self, now: float) -> None:
        """The broker reads nothing for now: count the wait from this moment."""
        for publish in self._sent.values():
            publish.sent_at = now

    def lost(self) -> list[Publish]:
        """The channel is gone: take out the publishes that were under way on it, without an outcome."""
        under_way = [publish for publish in self._sent.values() if not publish.future.done()]
        self._sent.clear()
        self._tags.clear()
        self.tag = 0
        return under_way
