"""The unconfirmed publishes of one channel: which are waiting, which are in flight, and in which order they
are sent. No I/O and no clock."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from worker.amqp.properties import Properties
from worker.backoff import Backoff
from worker.errors import WorkerError


@dataclass(slots=True, eq=False)
class Message:
    """One message to publish. Without a `message_id` it gets a new one. If RabbitMQ closes the connection for
    it, it is published once more with the properties `reduced`, or with only the worker's headers (contract
    §2)."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    external: bool = False  # to a queue that a `reply_to` names: may end in Unroutable or PublishRefused
    reduced: Properties | None = None

    @property
    def queue(self) -> str:
        """The queue that it goes to; the worker's exchanges are named like their queues."""
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
    """Unconfirmed publishes: those that wait, in the order in which they are sent, and those in flight, by
    delivery tag."""

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
        """The oldest publish in flight."""
        return next(iter(self._sent.values()), None)

    def add(self, publish: Publish) -> None:
        """Queue it behind those that wait."""
        self._waiting.append(publish)

    def put_back(self, publishes: Iterable[Publish]) -> None:
        """Queue publishes ahead of those that wait."""
        self._waiting.extendleft(reversed([*publishes]))

    def next(self) -> Publish | None:
        """Remove and return the next waiting publish without an outcome: a cancelled one is not sent."""
        while self._waiting:
            publish = self._waiting.popleft()
            if not publish.future.done():
                return publish
        return None

    def is_in_flight(self, key: str) -> bool:
        return key in self._tags

    def sent(self, publish: Publish, now: float) -> None:
        """Record that it was sent; it has the next delivery tag."""
        self.tag += 1
        self._tags[publish.key] = self.tag
        self._sent[self.tag] = publish
        publish.sent_at = now

    def answered(self, tag: int, *, multiple: bool = False) -> list[Publish]:
        """Remove and return what the broker has confirmed: one publish, or all up to it."""
        tags = [sent for sent in self._sent if sent <= tag] if multiple else [tag]
        publishes = [self._sent.pop(sent) for sent in tags if sent in self._sent]
        for publish in publishes:
            del self._tags[publish.key]
        return publishes

    def returned(self, key: str) -> list[Publish]:
        """Remove what the broker has returned, so that the confirm that follows matches nothing."""
        return self.answered(self._tags.get(key, 0))

    def overdue(self, now: float, first: float, longest: float) -> list[Publish]:
        """Remove and return those whose confirm is late; the time allowed doubles with each attempt."""
        late = []
        for tag, publish in list(self._sent.items()):
            if publish.sent_at + Backoff(first, longest).ceiling(publish.overdue + 1) > now:
                break
            publish.overdue += 1
            late += self.answered(tag)
        return late

    def put_off(self, now: float) -> None:
        """Restart the wait for confirms: the broker is not reading at present."""
        for publish in self._sent.values():
            publish.sent_at = now

    def lost(self) -> list[Publish]:
        """The channel is lost: remove everything in flight, and return what has no outcome."""
        in_flight = [publish for publish in self._sent.values() if not publish.future.done()]
        self._sent.clear()
        self._tags.clear()
        self.tag = 0
        return in_flight
