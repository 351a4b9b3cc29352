"""The publishes of one channel that are not confirmed: which are waiting, which are under way, and in which
order they go. No I/O and no clock."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from worker.amqp.properties import Properties
from worker.backoff import Backoff


@dataclass(slots=True, eq=False)
class Message:
    """One message to publish. Without a `message_id` of its own it gets a fresh one. If RabbitMQ turns it
    down whatever the queue, it is published once more with the properties `reduced`, or with its headers of
    ours alone (contract §2)."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes
    external: bool = False  # to a queue that somebody else named: may end in Unroutable or PublishRefused
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


class Ledger:
    """Unconfirmed publishes, each in one of three states: waiting (in the order in which they go out), under
    way (by delivery tag), or set aside (published on another connection, or again after a pause)."""

    def __init__(self) -> None:
        self.tag = 0  # of the last publish on the channel
        self._waiting: deque[Publish] = deque()
        self._sent: dict[int, Publish] = {}
        self._tags: dict[str, int] = {}
        self._aside: set[Publish] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent) + len(self._aside)

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
        self._aside.discard(publish)
        self._waiting.append(publish)

    def set_aside(self, publishes: Iterable[Publish]) -> None:
        """Take some out of those that wait."""
        chosen = set(publishes)
        self._aside |= chosen
        self._waiting = deque(publish for publish in self._waiting if publish not in chosen)

    def is_aside(self, publish: Publish) -> bool:
        return publish in self._aside

    def settled(self, publish: Publish) -> None:
        """One that was set aside has ended."""
        self._aside.discard(publish)

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
        if not multiple:
            publish = self._take(tag)
            return [] if publish is None else [publish]
        tags = [sent for sent in self._sent if sent <= tag]
        return [publish for sent in tags if (publish := self._take(sent)) is not None]

    def returned(self, key: str) -> list[Publish]:
        """Take out the one that the broker has returned. Its confirm, which follows, finds nothing."""
        return self.answered(self._tags.get(key, 0))

    def overdue(self, now: float, first: float, longest: float) -> list[Publish]:
        """Take out those that have waited too long for their confirm; the time doubles with each attempt."""
        late = []
        for tag, publish in list(self._sent.items()):
            if publish.sent_at + Backoff(first, longest).ceiling(publish.overdue + 1) > now:
                break
            self._take(tag)
            publish.overdue += 1
            late.append(publish)
        return late

    def put_off(self, now: float) -> None:
        """The broker reads nothing for now: count the wait from this moment."""
        for publish in self._sent.values():
            publish.sent_at = now

    def lost(self) -> list[Publish]:
        """The channel is gone: what was under way goes first on the next one, in its order. Returns it."""
        under_way = list(self._sent.values())
        self._waiting.extendleft(reversed(under_way))
        self._sent.clear()
        self._tags.clear()
        self.tag = 0
        return under_way

    def clear(self) -> list[Publish]:
        """Take out all."""
        self.lost()
        publishes = [*self._waiting, *self._aside]
        self._waiting.clear()
        self._aside.clear()
        return publishes

    def _take(self, tag: int) -> Publish | None:
        publish = self._sent.pop(tag, None)
        if publish is not None:
            self._tags.pop(publish.key, None)
        return publish
