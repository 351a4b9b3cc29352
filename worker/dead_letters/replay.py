"""Replaying and discarding: each letter is removed, a replayed one when the broker has confirmed that it was
published again (contract §5).

Killed in between, a letter is replayed twice and never lost. Letters of one resource go one after the other,
so that their order is kept even if the broker refuses one for a while.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from aiolimiter import AsyncLimiter

from worker.amqp.consumer import COUNTS
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.amqp.publisher import Publisher
from worker.amqp.queue import QueueBrowser
from worker.broker.request_message import operator_headers
from worker.broker.topology import Topology
from worker.contract.settlement import Resource
from worker.contract.timestamps import now, text_of
from worker.contract.words import (
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
from worker.dead_letters.patch import Patched, Unfit
from worker.dead_letters.plan import Plan
from worker.dead_letters.queue import DeadLetterQueue, Letters
from worker.events import EventListener
from worker.settings import Settings

# The broker's headers, and those that would route copies elsewhere (CC, BCC).
_LEFT_BEHIND = frozenset({*BROKERS_WORDS, BROKERS_HEADER, *COUNTS, "BCC", "CC"})
AT_ONCE = 200  # letters that are published and not confirmed
# Letters are held in turns. Between two turns they are back in the queue, and others can look at them.
TURN = 5.0  # seconds
BETWEEN_TURNS = 0.3  # seconds; a command that waits to look asks more often than that
STOP_TIMEOUT = 3.0  # seconds; how long a stopped replay waits for the confirms of what it has published
TIMER = 0.01  # seconds
POLL_INTERVAL = 0.2  # seconds between looks whether to stop


class Sweep:
    """Goes through the queue, in turns, to discard the `wanted` letters and no other. `stop` ends it after
    what is under way. Those that are left in `wanted` were not there as they were planned; `changed` are
    those of them that somebody has changed. Raises as DeadLetterQueue does."""

    def __init__(
        self,
        queue: DeadLetterQueue,
        wanted: Counter[tuple[str, str]],
        stop: asyncio.Event,
        removed: Callable[[Letter], None],
    ) -> None:
        self.wanted = wanted
        self.changed: set[str] = set()
        self._planned = frozenset(wanted)
        self._keys = {key for key, _ in wanted}
        self._queue = queue
        self._stop = stop
        self._removed = removed

    async def run(self) -> None:
        """Do it."""
        is_over = await self._turn()
        while not is_over:
            await asyncio.sleep(BETWEEN_TURNS)
            is_over = await self._turn()

    async def _turn(self) -> bool:
        """True when all were seen, False when the turn is over."""
        ends_at = time.monotonic() + TURN
        async with self._queue.take(self.wanted.total()) as (browser, letters):
            is_over = await self._look_through(browser, letters, ends_at)
            await self._drain(browser)
        return is_over

    async def _look_through(self, browser: QueueBrowser, letters: Letters, ends_at: float) -> bool:
        async for letter in letters:
            if self._stop.is_set():
                return True
            if self.wanted[letter.identity]:
                self.wanted[letter.identity] -= 1
                await self._handle(browser, letter)
                if not self.wanted.total():
                    return True
                if time.monotonic() > ends_at:
                    return False
            elif letter.key in self._keys and letter.identity not in self._planned:
                self.changed.add(letter.key)
        return True

    async def _handle(self, browser: QueueBrowser, letter: Letter) -> None:
        """A wanted letter."""
        await browser.remove(letter.delivery)
        self._removed(letter)

    async def _drain(self, browser: QueueBrowser) -> None:
        """Wait for what is under way."""


class ReplaySweep(Sweep):
    """Publishes each again, then removes it. `sent` is called in between, with the id of the resource that
    the replay names."""

    def __init__(
        self,
        queue: DeadLetterQueue,
        wanted: Counter[tuple[str, str]],
        stop: asyncio.Event,
        removed: Callable[[Letter], None],
        *,
        settings: Settings,
        plan: Plan,
        rate: float | None,
        events: EventListener,
        sent: Callable[[Letter, str | None], None],
    ) -> None:
        super().__init__(queue, wanted, stop, removed)
        self._settings = settings
        self._plan = plan
        self._entry = Topology(settings.prefix).entry
        self._publisher = Publisher(settings, events)
        self._limiter = None if rate is None else _limiter(rate)
        self._sent = sent
        self._open: dict[asyncio.Future[None], Letter] = {}  # published and not removed yet
        self._resources: set[Resource] = set()  # theirs

    async def run(self) -> None:
        self._publisher.start()
        try:
            await super().run()
        finally:
            await self._publisher.stop()

    async def _handle(self, browser: QueueBrowser, letter: Letter) -> None:
        try:
            prepared = self._plan.prepare(letter, self._settings)
        except Unfit:
            return
        if self._limiter is not None:
            await self._settle(browser)
            await self._unless_stopped(self._limiter.acquire())
        while len(self._open) >= AT_ONCE or letter.resource in self._resources:
            if self._stop.is_set():
                return
            await self._wait(browser)
        if self._stop.is_set():
            return
        self._open[self._publisher.send(self._message(letter, prepared))] = letter
        if letter.resource is not None:
            self._resources.add(letter.resource)
        self._sent(letter, prepared.resource_id if prepared else letter.resource and letter.resource.id)

    async def _drain(self, browser: QueueBrowser) -> None:
        """Wait until all are confirmed and removed; once stopped, for a short while only."""
        deadline = None
        while self._open:
            if self._stop.is_set():
                deadline = deadline or time.monotonic() + STOP_TIMEOUT
                if time.monotonic() > deadline:
                    return
            await self._wait(browser)

    async def _wait(self, browser: QueueBrowser) -> None:
        browser.check()
        await asyncio.wait(self._open, timeout=POLL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        await self._settle(browser)

    async def _settle(self, browser: QueueBrowser) -> None:
        """Remove the letters whose replays are confirmed by now."""
        for future in [future for future in self._open if future.done()]:
            letter = self._open.pop(future)
            if letter.resource is not None:
                self._resources.discard(letter.resource)
            future.result()
            await super()._handle(browser, letter)

    async def _unless_stopped(self, waited_for: Coroutine[Any, Any, None]) -> None:
        tasks = {asyncio.create_task(waited_for), asyncio.create_task(self._stop.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _message(self, letter: Letter, prepared: Patched | None) -> Message:
        properties = replayed(letter, force=self._plan.force)
        if prepared is None:
            return Message(self._entry, REPLAY_KEY, properties, letter.delivery.body)
        properties = properties.changed(content_type="application/json", content_encoding=None)
        return Message(self._entry, REPLAY_KEY, properties, prepared.body)


def _limiter(rate: float) -> AsyncLimiter:
    """Limits to the rate. The burst is the number that passes between two ticks of a timer, at least one."""
    burst = max(1, rate * TIMER)
    return AsyncLimiter(burst, burst / rate)


def replayed(letter: Letter, *, force: bool) -> Properties:
    """The properties of a replay: those of the request, its first time and id, and that it is a replay."""
    headers: dict[str, str | int | bool] = {
        RECEIVED_AT_HEADER: text_of(letter.received_after),
        REQUEST_ID_HEADER: letter.id,
        REPLAY_COUNT_HEADER: letter.facts["replays"] + 1,
        REPLAY_AT_HEADER: text_of(now()),
        REPLAY_OF_HEADER: letter.id,
        REPLAY_REASON_HEADER: letter.facts["reason"],
    }
    if letter.facts["userId"]:
        headers[USER_HEADER] = letter.facts["userId"]
    if force:
        headers[REPLAY_FORCE_HEADER] = True
    # The publisher gives a message without an id a fresh one, which the worker would take for the request's.
    return letter.properties.changed(
        headers,
        without=_LEFT_BEHIND | operator_headers(letter.properties),
        user_id=None,
        expiration=None,
        message_id=letter.id,
    ).persistent()
