"""Replaying and discarding. A discarded letter is removed; a replayed letter is removed when the broker has
confirmed its publish (contract §5).

If the command is killed in between, a letter is replayed twice, but never lost. Letters of one resource are
published one after the other, so that their order is kept even if the broker rejects one for a while."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from worker.amqp.connection import pause
from worker.amqp.consumer import COUNTS
from worker.amqp.ledger import Message
from worker.amqp.queue import QueueBrowser
from worker.broker.request_message import operator_headers
from worker.contract import words
from worker.contract.timestamps import now, text_of
from worker.dead_letters.letter import BROKERS_HEADER, BROKERS_WORDS, Letter
from worker.dead_letters.queue import DeadLetterQueue

# The broker's headers, and CC and BCC, which would route copies to other queues.
_LEFT_BEHIND = frozenset({*BROKERS_WORDS, BROKERS_HEADER, *COUNTS, "BCC", "CC"})
AT_ONCE = 200  # unconfirmed letters
# Letters are consumed in turns. Between two turns they are in the queue, and others can browse it.
TURN = 5.0  # seconds
BETWEEN_TURNS = 0.3  # seconds; a waiting browser polls more often
STOP_TIMEOUT = 3.0  # seconds that a stopped replay waits for its last confirms
POLL_INTERVAL = 0.2  # seconds between checks whether to stop


@dataclass(eq=False)
class Sweep:
    """Removes the `wanted` letters and no others, in turns. With `publish`, each is published again first, at
    most `rate` per second; a letter for which `publish` returns None stays. `stop` ends the sweep after the
    letters in progress. Letters that remain in `wanted` were missing or changed since the plan; `changed` are
    the keys of the latter."""

    queue: DeadLetterQueue
    wanted: Counter[tuple[str, str]]
    stop: asyncio.Event
    removed: Callable[[Letter], None]
    publish: Callable[[Letter], "asyncio.Future[None] | None"] | None = None
    rate: float | None = None
    changed: set[str] = field(default_factory=set)
    _open: dict["asyncio.Future[None]", Letter] = field(default_factory=dict)  # published, not removed yet
    _due: float = 0.0  # when the next one may go

    async def run(self) -> None:
        """Remove the letters. Raises as DeadLetterQueue does."""
        planned = frozenset(self.wanted)
        while await self._turn(planned):
            await pause(BETWEEN_TURNS, self.stop)

    async def _turn(self, planned: frozenset[tuple[str, str]]) -> bool:
        """Run one turn; returns whether another one is needed."""
        ends_at = time.monotonic() + TURN
        keys = {key for key, _ in planned}
        left = self.wanted.total()
        async with self.queue.take(left) as (browser, deliveries):
            async for delivery in deliveries:
                letter = self.queue.open(delivery)
                if self.stop.is_set():
                    break
                if self.wanted[letter.identity]:
                    self.wanted[letter.identity] -= 1
                    left -= 1
                    await self._handle(browser, letter)
                    if not left or time.monotonic() > ends_at:
                        break
                elif letter.key in keys and letter.identity not in planned:
                    self.changed.add(letter.key)
            else:
                left = 0
            await self._settle(browser)
        return left > 0 and not self.stop.is_set()

    async def _handle(self, browser: QueueBrowser, letter: Letter) -> None:
        if self.publish is None:
            await self._remove(browser, letter)
            return
        resources = {each.resource for each in self._open.values()}
        if len(self._open) >= AT_ONCE or (letter.resource is not None and letter.resource in resources):
            await self._settle(browser)
        if self.rate is not None:
            self._due = max(self._due + 1 / self.rate, time.monotonic())
            if self._due > time.monotonic():
                await self._settle(browser)
            await pause(self._due - time.monotonic(), self.stop)
        if not self.stop.is_set() and (confirmed := self.publish(letter)) is not None:
            self._open[confirmed] = letter

    async def _settle(self, browser: QueueBrowser) -> None:
        """Wait until all publishes are confirmed, and remove their letters. Once stopped, wait for
        STOP_TIMEOUT at most."""
        ends_at = float("inf")
        while self._open and time.monotonic() < ends_at:
            browser.check()
            confirmed, _ = await asyncio.wait(
                self._open, timeout=POLL_INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
            for future in confirmed:
                future.result()
                await self._remove(browser, self._open.pop(future))
            if self.stop.is_set():
                ends_at = min(ends_at, time.monotonic() + STOP_TIMEOUT)

    async def _remove(self, browser: QueueBrowser, letter: Letter) -> None:
        await browser.remove(letter.delivery)
        self.removed(letter)


def replayed(letter: Letter, entry: str, body: bytes, *, force: bool) -> Message:
    """The replay of a letter: its request with this body, and the headers of a replay (contract §2)."""
    headers: dict[str, str | int | bool] = {
        words.RECEIVED_AT_HEADER: text_of(letter.received_after),
        words.REQUEST_ID_HEADER: letter.id,
        words.REPLAY_COUNT_HEADER: letter.facts["replays"] + 1,
        words.REPLAY_AT_HEADER: text_of(now()),
        words.REPLAY_OF_HEADER: letter.id,
        words.REPLAY_REASON_HEADER: letter.facts["reason"],
    }
    if letter.facts["userId"]:
        headers[words.USER_HEADER] = letter.facts["userId"]
    if force:
        headers[words.REPLAY_FORCE_HEADER] = True
    # Without a message id, Publisher would add one, and the worker would use it as the request's.
    properties = letter.properties.changed(
        headers,
        without=_LEFT_BEHIND | operator_headers(letter.properties),
        user_id=None,
        expiration=None,
        message_id=letter.id,
    ).persistent()
    if body is not letter.delivery.body:
        properties = properties.changed(content_type="application/json", content_encoding=None)
    return Message(entry, words.REPLAY_KEY, properties, body)
