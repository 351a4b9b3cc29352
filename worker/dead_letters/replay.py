"""Replaying: each letter is published again, and removed when the broker has confirmed that (contract §5).

Killed in between, a letter is replayed twice and never lost. Letters of one resource go one after the other,
so that their order is kept even if the broker refuses one for a while.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiolimiter import AsyncLimiter

from worker.amqp.consumer import COUNTS
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.amqp.publisher import Publisher
from worker.broker import topology
from worker.broker.topology import Topology
from worker.contract.resource import Resource
from worker.contract.timestamps import now, text_of
from worker.contract.words import (
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ENCRYPTION_KEY_HEADER,
    ERROR_HEADER,
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
)
from worker.dead_letters.box import DeadLetterBox, Progress, Removal
from worker.dead_letters.letter import BROKERS_HEADER, Letter
from worker.dead_letters.outcomes import OutcomeFollower
from worker.dead_letters.patch import InvalidPatch, Patches
from worker.dead_letters.plan import Plan, why_not_replayable
from worker.dead_letters.selection import Selection
from worker.events import EventListener
from worker.settings import Settings

# Headers of the dead letter itself, and those that would route copies elsewhere (CC, BCC).
_LEFT_BEHIND = frozenset(
    {
        *(
            f"x-{which}-death-{what}"
            for which in ("first", "last")
            for what in ("exchange", "queue", "reason")
        ),
        ATTEMPTS_HEADER,
        BROKERS_HEADER,
        DEAD_AT_HEADER,
        *COUNTS,
        ERROR_HEADER,
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


class Replay:
    """One run. `stop` ends it after what is under way. `follower`, if there is one, is told which replays to
    expect."""

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        patches: Patches,
        events: EventListener,
        *,
        force: bool = False,
        accept_unencrypted: bool = False,
        rate: float | None = None,
        follower: OutcomeFollower | None = None,
    ) -> None:
        self._settings = settings
        self._selection = selection
        self._patches = patches
        self._events = events
        self._force = force
        self._accept_unencrypted = accept_unencrypted
        self._rate = rate
        self._follower = follower
        self._entry = Topology(settings.prefix).entry
        self.stop = asyncio.Event()

    async def run(self, box: DeadLetterBox, plan: Plan, progress: Progress) -> None:
        """Replay the matching letters that the plan counted. A letter that fails again and comes back is left
        for another run. Raises as DeadLetterBox does."""
        limiter = None if self._rate is None else _limiter(self._rate)
        publisher = Publisher(self._settings, self._events, topology.ensure)
        publisher.start()
        try:
            while not self.stop.is_set():
                async with box.take(
                    plan.total - progress.done, plan.total - plan.matching + plan.unfit
                ) as removal:
                    batch = _Batch(publisher, removal, progress, self.stop, self._follower)
                    finished = await self._replay(removal, batch, limiter, progress)
                if finished:
                    break
                progress.unfit = 0  # they are counted again
                await asyncio.sleep(BETWEEN_TURNS)
        finally:
            await publisher.stop()

    async def _replay(
        self, removal: Removal, batch: "_Batch", limiter: AsyncLimiter | None, progress: Progress
    ) -> bool:
        """True when all were seen, False when the turn is over."""
        ends_at = time.monotonic() + TURN
        async with contextlib.aclosing(removal.letters()) as letters, _drained(batch):
            async for letter in letters:
                if self.stop.is_set():
                    return True
                if letter not in self._selection:
                    continue
                message = self._message(letter)
                if isinstance(message, InvalidPatch):
                    progress.more(unfit=1)
                    continue
                if limiter is not None:
                    await batch.settle()
                    await self._unless_stopped(limiter.acquire())
                await batch.publish(letter, message)
                if time.monotonic() > ends_at:
                    return False
        return True

    async def _unless_stopped(self, waited_for: Coroutine[Any, Any, None]) -> None:
        tasks = {asyncio.create_task(waited_for), asyncio.create_task(self.stop.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _message(self, letter: Letter) -> "Message | InvalidPatch":
        if why := why_not_replayable(letter, self._settings, accept_unencrypted=self._accept_unencrypted):
            return InvalidPatch((why,))
        body = letter.delivery.body
        properties = replayed(letter, force=self._force)
        patch = self._patches.of(letter)
        if isinstance(patch, InvalidPatch):
            return patch
        if patch is not None:
            patched = patch.apply(body, self._settings.max_body_bytes)
            if isinstance(patched, InvalidPatch):
                return patched
            body = patched.body
            properties = properties.changed(content_type="application/json", content_encoding=None)
        return Message(self._entry, REPLAY_KEY, properties, body)


def _limiter(rate: float) -> AsyncLimiter:
    """Limits to the rate. The burst is the number that passes between two ticks of a timer, at least one."""
    burst = max(1, rate * TIMER)
    return AsyncLimiter(burst, burst / rate)


class _Batch:
    """Letters that are published and not removed yet."""

    def __init__(
        self,
        publisher: Publisher,
        removal: Removal,
        progress: Progress,
        stop: asyncio.Event,
        follower: OutcomeFollower | None,
    ) -> None:
        self._publisher = publisher
        self._removal = removal
        self._progress = progress
        self._stop = stop
        self._follower = follower
        self._open: dict[asyncio.Future[None], Letter] = {}
        self._resources: set[Resource] = set()

    async def publish(self, letter: Letter, message: Message) -> None:
        """Publish, unless stopped; waits while too many are open, or one of the same resource is."""
        while len(self._open) >= AT_ONCE or letter.resource in self._resources:
            if self._stop.is_set():
                return
            await self._wait()
        if self._stop.is_set():
            return
        self._open[self._publisher.send(message)] = letter
        if self._follower is not None:
            self._follower.expect(message.properties.text("message_id") or "")
        if letter.resource is not None:
            self._resources.add(letter.resource)

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
            self._progress.more(done=1)

    async def _wait(self) -> None:
        self._removal.check()
        await asyncio.wait(self._open, timeout=POLL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
        await self.settle()


@contextlib.asynccontextmanager
async def _drained(batch: _Batch) -> AsyncIterator[None]:
    yield
    await batch.drain()


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
    if force:
        headers[REPLAY_FORCE_HEADER] = True
    # The publisher gives a message without an id a fresh one, which the worker would take for the request's.
    return letter.properties.changed(
        headers, without=_LEFT_BEHIND, user_id=None, expiration=None, message_id=letter.id
    ).persistent()


async def discard(box: DeadLetterBox, selection: Selection, plan: Plan, progress: Progress) -> None:
    """Remove the matching letters that the plan counted. Raises as DeadLetterBox does."""
    async with (
        box.take(plan.total, plan.total - plan.matching) as removal,
        contextlib.aclosing(removal.letters()) as letters,
    ):
        async for letter in letters:
            if letter in selection:
                await removal.remove(letter)
                progress.more(done=1)
