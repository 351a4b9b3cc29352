"""One replay or discard of dead letters, from its plan to the outcome of its last letter: for the commands
and for the console.

A run acts on the letters that its plan found, and on no other: one that came since stays, one that has gone
or was changed is told.
"""

import asyncio
import contextlib
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal, get_args

from worker.broker.status import publish_order, whoami
from worker.contract.status import Order, OrderKind
from worker.dead_letters.letter import Letter
from worker.dead_letters.outcomes import OutcomeFollower, Record
from worker.dead_letters.plan import Plan, Planned, Wish, make_plan
from worker.dead_letters.queue import DeadLetterQueue, open_dead_letters
from worker.dead_letters.replay import Sweep
from worker.errors import TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

Canary = Literal["one", "tenth", "none"]
"""The letters that are replayed first: one of each cause, or a tenth. The rest follow once these are
registered."""
CANARIES: tuple[Canary, ...] = get_args(Canary)

CAUSES_TOLD = 3
BAD = frozenset({"rejected", "failed"})
"""Statuses that make a canary fail."""


class Run(EventListener):
    """`plan` first, then `perform` once. `say` is told what holds it up; `progressed` is called when a letter
    is done.

    `done` letters were removed (`removed` are their ids), `left` stay. `outcomes` are the journal's records
    by the ids of letters, and `missing` counts replays whose outcome is not known. `gone` and `changed` are
    ids of letters that were not there as they were planned."""

    def __init__(
        self,
        settings: Settings,
        wish: Wish,
        say: Callable[[str], None],
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._say = say
        self._stop = asyncio.Event()
        self._expected: dict[str, Planned] = {}
        self.number = secrets.token_hex(4)
        self.wish = wish
        self.planned: Plan | None = None
        self.progressed = progressed
        self.stage = ""
        self.done = self.missing = 0
        self.outcomes: dict[str, Record] = {}
        self.statuses: Counter[str] = Counter()
        self.removed: set[str] = set()
        self.gone: set[str] = set()
        self.changed: set[str] = set()
        self.is_followed = self.has_bad_canary = False

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    @property
    def left(self) -> int:
        """Letters of the plan that stay, because they cannot be replayed or it ended before."""
        return 0 if self.planned is None else max(0, len(self.planned.letters) - self.done - len(self.gone))

    @property
    def outcome(self) -> str:
        """What became of the replays, in words."""
        words = [f"{count:,} {status}" for status, count in self.statuses.most_common()]
        if self.missing:
            words.append(f"{self.missing:,} not known yet")
        return ", ".join(words)

    def stop(self) -> None:
        """End it after what is under way; the letters that are left stay where they are."""
        self._stop.set()

    async def plan(self) -> Plan:
        """Look at the letters. Raises as `make_plan`."""
        async with open_dead_letters(self._settings, self._say) as queue:
            self.planned = await make_plan(queue, self._settings, self.wish)
        return self.planned

    async def perform(
        self,
        *,
        by: str | None = None,
        why: str = "",
        canary: Canary = "none",
        rate: float | None = None,
        follow: bool = True,
    ) -> None:
        """Do what was planned, and unless `follow` is false wait for what becomes of it. `by` is this
        terminal's user by default. Raises as DeadLetterQueue does; `done` tells what was done until then."""
        plan, by = self.planned, by or whoami()
        assert plan is not None, "a run is planned first"
        if not plan.going:
            return  # a beginning without an end would look like one that is under way
        is_replay = self.wish.kind == "replay"
        begun: OrderKind = "replaying" if is_replay else "discarding"
        note = {"run": self.number, "cause": "; ".join(plan.causes[:CAUSES_TOLD]) or None}
        try:
            async with self._following(follow and is_replay) as follower:
                async with (
                    open_dead_letters(self._settings, self._say) as queue,
                    queue.change(Order.now(begun, why, by=by, **note)),
                ):
                    await self._publish(queue, plan, canary, rate, follower)
                await self._outcomes_of(follower)
        finally:
            if self.done:
                done: OrderKind = "replayed" if is_replay else "discarded"
                more = {**note, "count": self.done, "outcome": self.outcome or None}
                await asyncio.shield(self._record(Order.now(done, why, by=by, **more)))

    async def _publish(
        self,
        queue: DeadLetterQueue,
        plan: Plan,
        canary: Canary,
        rate: float | None,
        follower: OutcomeFollower | None,
    ) -> None:
        going = plan.going
        first = _canaries(going, canary) if follower is not None else []
        keys = {letter.key for letter in first}
        rest = [letter for letter in going if letter.key not in keys]
        if first and rest:
            self.stage = f"Canary of {len(first):,}"
            await self._sweep(queue, first, rate, follower)
            self.has_bad_canary = not await self._outcomes_of(follower) or self._has_bad_outcome
            if self.has_bad_canary:
                return
        if not self.is_stopping:
            self.stage = "Replaying" if self.wish.kind == "replay" else "Discarding"
            await self._sweep(queue, rest or first, rate, follower)

    async def _sweep(
        self,
        queue: DeadLetterQueue,
        letters: Sequence[Planned],
        rate: float | None,
        follower: OutcomeFollower | None,
    ) -> None:
        """Replay or discard these."""
        planned = {letter.key: letter for letter in letters}

        def sent(letter: Letter) -> None:
            if follower is not None:
                resource = planned[letter.key].resource
                follower.expect(letter.key, letter.id, letter.received_after, resource and resource.id)

        sweep = Sweep(Counter(letter.identity for letter in letters), self._stop)
        if self.wish.kind == "discard":
            await sweep.discard(queue, self._removed)
        else:
            await sweep.replay(queue, self._settings, self.wish, rate, self, sent, self._removed)
        if not self.is_stopping:
            self.changed |= sweep.changed
            self.gone |= {key for key, _ in sweep.wanted.elements()} - sweep.changed

    def _removed(self, letter: Letter) -> None:
        self.done += 1
        self.removed.add(letter.key)
        self.progressed()

    async def _outcomes_of(self, follower: OutcomeFollower | None) -> bool:
        """Wait for the outcomes of what was replayed so far; False where nobody will tell them."""
        if follower is None:
            return True
        stage, self.stage = self.stage, f"{self.stage}: waiting for what becomes of them"
        are_known = await follower.wait(self._stop, self._say)
        self.stage, self.missing = stage, follower.missing
        if not are_known and not self.is_stopping:
            self._say(
                f"No worker takes requests: {self.missing:,} wait in the queue until one is started. "
                "ott-worker journal shows what becomes of them"
            )
        return are_known

    @property
    def _has_bad_outcome(self) -> bool:
        return any(self.statuses[status] for status in BAD)

    @contextlib.asynccontextmanager
    async def _following(self, follow: bool) -> AsyncIterator[OutcomeFollower | None]:
        """Follow the outcomes, where there is a journal to read them from."""
        async with contextlib.AsyncExitStack() as stack:
            follower = None
            if follow and self._settings.journal:
                try:
                    follower = await stack.enter_async_context(OutcomeFollower(self._settings, self._settled))
                except TopologyError as error:
                    self._say(f"{error}. What becomes of the letters is not followed")
            self.is_followed = follower is not None
            yield follower

    def _settled(self, key: str, record: Record) -> None:
        self.outcomes[key] = record
        self.statuses[str(record.get("status"))] += 1
        self.progressed()

    async def _record(self, order: Order) -> None:
        """Note what was changed. A user who may not write there, or a broker without that stream, makes the
        change no less done."""
        with contextlib.suppress(WorkerError):
            await publish_order(self._settings, order)

    def publish_turned_down(self, queue: str, why: str) -> None:
        self._say(f"{queue} does not take the message ({why}): trying again")

    def publisher_lost(self, why: str) -> None:
        self._say(f"{why}: trying again")

    def publisher_connected(self) -> None:
        self._say("")


def _canaries(going: Sequence[Planned], canary: Canary) -> list[Planned]:
    """The letters that go first: of each cause the first that would be registered, or a tenth of all."""
    if canary == "tenth":
        return list(going[: math.ceil(len(going) / 10)])
    if canary == "none":
        return []
    first: dict[str, Planned] = {}
    for letter in going:
        if letter.outcome == "replayed":
            first.setdefault(letter.facts.cause, letter)
    return list(first.values())
