"""Replaying and discarding: each letter is removed, a replayed one when the broker has confirmed that it was
published again (contract §5).

Killed in between, a letter is replayed twice and never lost. Letters of one resource go one after the other,
so that their order is kept even if the broker refuses one for a while.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from aiolimiter import AsyncLimiter

from worker.amqp.consumer import COUNTS
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.amqp.publisher import Publisher
from worker.broker.topology import Topology
from worker.contract.settlement import Resource
from worker.contract.timestamps import now, text_of
from worker.contract.words import (
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ENCRYPTION_KEY_HEADER,
    ERROR_HEADER,
    HTTP_STATUS_HEADER,
    LETTER_HEADER,
    REASON_HEADER,
    RECEIVED_AT_HEADER,
    REPLAY_AT_HEADER,
    REPLAY_COUNT_HEADER,
    REPLAY_FORCE_HEADER,
    REPLAY_KEY,
    REPLAY_OF_HEADER,
    REPLAY_REASON_HEADER,
    REQUEST_ID_HEADER,
    USER_HEADER,
)
from worker.dead_letters.letter import BROKERS_HEADER, BROKERS_WORDS, Letter
from worker.dead_letters.patch import InvalidPatch
from worker.dead_letters.plan import Wish, prepare
from worker.dead_letters.queue import DeadLetterQueue, RemovalSession
from worker.events import EventListener
from worker.settings import Settings

# Headers of the dead letter itself, and those that would route copies elsewhere (CC, BCC).
_LEFT_BEHIND = frozenset(
    {
        *BROKERS_WORDS,
        ATTEMPTS_HEADER,
        BROKERS_HEADER,
        DEAD_AT_HEADER,
        *COUNTS,
        ERROR_HEADER,
        HTTP_STATUS_HEADER,
        LETTER_HEADER,
        REPLAY_FORCE_HEADER,
        REASON_HEADER,
        ENCRYPTION_KEY_HEADER,
        "BCC",
        "CC",
    }
)
AT_ONCE = 200  # letters that are published and not confirmed
# Letters are held in turns. Between two turns they are back in the queue, and others can look at them.
TURN = 5.0  # seconds
BETWEEN_TURNS = 0.3  # seconds; a command that waits to look asks more often than that
STOP_TIMEOUT = 3.0  # seconds; how long a stopped replay waits for the confirms of what it has published
TIMER = 0.01  # seconds
POLL_INTERVAL = 0.2  # seconds between looks whether to stop

Handle = Callable[[RemovalSession, Letter], Awaitable[None]]


class Sweep:
    """Goes through the queue, in turns, to remove the `wanted` letters and no other. `stop` ends it after
    what is under way. Those that are left in `wanted` were not there as they were planned; `changed` are
    those of them that somebody has changed."""

    def __init__(self, wanted: Counter[tuple[str, str]], stop: asyncio.Event) -> None:
        self.wanted = wanted
        self.changed: set[str] = set()
        self._planned = frozenset(wanted)
        self._keys = {key for key, _ in wanted}
        self._stop = stop

    async def discard(self, queue: DeadLetterQueue, removed: Callable[[Letter], None]) -> None:
        """Remove them. Raises as DeadLetterQueue does."""

        async def remove(removal: RemovalSession, letter: Letter) -> None:
            await removal.remove(letter)
            removed(letter)

        await self._in_turns(queue, lambda _: contextlib.nullcontext(remove))

    async def replay(
        self,
        queue: DeadLetterQueue,
        settings: Settings,
        wish: Wish,
        rate: float | None,
        events: EventListener,
        sent: Callable[[Letter], None],
        removed: Callable[[Letter], None],
    ) -> None:
        """Publish each again, then remove it. Raises as DeadLetterQueue does."""
        limiter = None if rate is None else _limiter(rate)
        entry = Topology(settings.prefix).entry
        publisher = Publisher(settings, events)
        publisher.start()

        @contextlib.asynccontextmanager
        async def batch_of(removal: RemovalSession) -> AsyncIterator[Handle]:
            batch = _Batch(publisher, removal, self._stop, removed)

            async def publish(removal: RemovalSession, letter: Letter) -> None:
                message = _message(letter, settings, wish, entry)
                if message is None:
                    return
                if limiter is not None:
                    await batch.settle()
                    await self._unless_stopped(limiter.acquire())
                if await batch.publish(letter, message):
                    sent(letter)

            yield publish
            await batch.drain()

        try:
            await self._in_turns(queue, batch_of)
        finally:
            await publisher.stop()

    async def _in_turns(self, queue: DeadLetterQueue, handling: Callable[[RemovalSession], Any]) -> None:
        is_over = await self._turn(queue, handling)
        while not is_over:
            await asyncio.sleep(BETWEEN_TURNS)
            is_over = await self._turn(queue, handling)

    async def _turn(self, queue: DeadLetterQueue, handling: Callable[[RemovalSession], Any]) -> bool:
        """True when all were seen, False when the turn is over."""
        ends_at = time.monotonic() + TURN
        async with (
            queue.take(self.wanted.total()) as removal,
            contextlib.aclosing(removal.letters()) as letters,
            handling(removal) as handle,
        ):
            async for letter in letters:
                if self._stop.is_set():
                    return True
                if self.wanted[letter.identity]:
                    self.wanted[letter.identity] -= 1
                    await handle(removal, letter)
                    if not self.wanted.total():
                        return True
                    if time.monotonic() > ends_at:
                        return False
                elif letter.key in self._keys and letter.identity not in self._planned:
                    self.changed.add(letter.key)
        return True

    async def _unless_stopped(self, waited_for: Coroutine[Any, Any, None]) -> None:
        tasks = {asyncio.create_task(waited_for), asyncio.create_task(self._stop.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def _message(letter: Letter, settings: Settings, wish: Wish, entry: str) -> Message | None:
    """The replay of a letter, None where it cannot be replayed."""
    prepared = prepare(letter, settings, wish)
    if isinstance(prepared, InvalidPatch):
        return None
    properties = replayed(letter, force=wish.force)
    if prepared is None:
        return Message(entry, REPLAY_KEY, properties, letter.delivery.body)
    properties = properties.changed(content_type="application/json", content_encoding=None)
    return Message(entry, REPLAY_KEY, properties, prepared.body)


def _limiter(rate: float) -> AsyncLimiter:
    """Limits to the rate. The burst is the number that passes between two ticks of a timer, at least one."""
    burst = max(1, rate * TIMER)
    return AsyncLimiter(burst, burst / rate)


class _Batch:
    """Letters that are published and not removed yet."""

    def __init__(
        self,
        publisher: Publisher,
        removal: RemovalSession,
        stop: asyncio.Event,
        removed: Callable[[Letter], None],
    ) -> None:
        self._publisher = publisher
        self._removal = removal
        self._stop = stop
        self._removed = removed
        self._open: dict[asyncio.Future[None], Letter] = {}
        self._resources: set[Resource] = set()

    async def publish(self, letter: Letter, message: Message) -> bool:
        """Publish, unless stopped; waits while too many are open, or one of the same resource is."""
        while len(self._open) >= AT_ONCE or letter.resource in self._resources:
            if self._stop.is_set():
                return False
            await self._wait()
        if self._stop.is_set():
            return False
        self._open[self._publisher.send(message)] = letter
        if letter.resource is not None:
            self._resources.add(letter.resource)
        return True

    async def drain(self) -> None:
        """Wait until all are confirmed and removed; once stopped, for a short while only."""
        deadline = None
        while self._open:
            now = time.monotonic()
            if self._stop.is_set():
                deadline = deadline or now + STOP_TIMEOUT
                if now > deadline:
                    return
            await self._wait()

    async def settle(self) -> None:
        """Remove the letters whose replays are confirmed by now."""
        for future in [future for future in self._open if future.done()]:
            letter = self._open.pop(future)
            if letter.resource is not None:
                self._resources.discard(letter.resource)
            future.result()
            await self._removal.remove(letter)
            self._removed(letter)

    async def _wait(self) -> None:
        self._removal.check()
        await asyncio.wait(self._open, timeout=POLL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        await self.settle()


def replayed(letter: Letter, *, force: bool) -> Properties:
    """The properties of a replay: those of the request, its first time and id, and that it is a replay."""
    headers: dict[str, str | int | bool] = {
        RECEIVED_AT_HEADER: text_of(letter.received_after),
        REQUEST_ID_HEADER: letter.id,
        REPLAY_COUNT_HEADER: letter.replays + 1,
        REPLAY_AT_HEADER: text_of(now()),
        REPLAY_OF_HEADER: letter.id,
        REPLAY_REASON_HEADER: letter.reason,
    }
    if letter.user:
        headers[USER_HEADER] = letter.user
    if force:
        headers[REPLAY_FORCE_HEADER] = True
    # The publisher gives a message without an id a fresh one, which the worker would take for the request's.
    return letter.properties.changed(
        headers, without=_LEFT_BEHIND, user_id=None, expiration=None, message_id=letter.id
    ).persistent()
