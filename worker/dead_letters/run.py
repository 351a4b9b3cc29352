"""One replay or discard of dead letters, from its plan to the outcome of its last letter, for the commands
and the console.

A run acts only on the letters that its plan found. Letters that arrived since stay; missing or changed ones
are reported. The outcomes of replays are read from the journal, because the replies go to the publishers."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from worker.amqp.connection import cancel_all
from worker.amqp.publisher import Publisher
from worker.broker.journal import follow, open_journal
from worker.broker.requester import look_for_workers
from worker.broker.situation import obstacle
from worker.broker.status import publish_order, read_workers, whoami
from worker.broker.topology import Topology
from worker.contract.settlement import recorded_id
from worker.contract.status import Order, OrderKind
from worker.contract.timestamps import text_of
from worker.dead_letters.letter import Letter, few
from worker.dead_letters.patch import NotReplayable
from worker.dead_letters.plan import Plan, Planned
from worker.dead_letters.queue import DeadLetterQueue, open_dead_letters
from worker.dead_letters.replay import Sweep, replayed
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

CAUSES_TOLD = 3
LOOK_INTERVAL = 1.0  # seconds without an outcome before checking for workers
ABSENT_LOOKS = 2  # checks without a worker before giving up

BAD = frozenset({"rejected", "failed"})  # statuses that make a canary fail

Record = dict[str, Any]


class Run(EventListener):
    """Call `look` first, then `perform` once. `say` is called with what the run waits for, `progressed` when
    a letter is done.

    `done` letters were removed (`removed` are their ids), `left` letters stay. `outcomes` are the journal's
    records by letter id, if the journal is followed. `gone` and `changed` are the ids of letters that were
    missing or changed since the plan."""

    def __init__(self, settings: Settings, plan: Plan, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._publisher = Publisher(settings, self)
        self._stop = asyncio.Event()
        self._news = asyncio.Event()  # an outcome has arrived, or the run was stopped
        # Replays without an outcome, by request id: the letter's id, and the arrival time and resource that
        # the journal's record will have.
        self._expected: dict[str, list[tuple[str, str, str | None]]] = {}
        self.number = secrets.token_hex(4)
        self.plan = plan
        self.progressed: Callable[[], None] = lambda: None
        self.stage = ""
        self.done = 0
        self.outcomes: dict[str, Record] = {}
        self.statuses: Counter[str] = Counter()
        self.removed: set[str] = set()
        self.gone: set[str] = set()
        self.changed: set[str] = set()
        self.is_followed = self.has_bad_canary = False

    @property
    def participle(self) -> Literal["replayed", "discarded"]:
        """What the run has done with its letters."""
        return "replayed" if self.plan.kind == "replay" else "discarded"

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    @property
    def missing(self) -> int:
        """The number of replays without an outcome."""
        return sum(map(len, self._expected.values()))

    @property
    def left(self) -> int:
        """The number of the plan's letters that stay: they cannot be replayed, or the run ended before."""
        return max(0, len(self.plan.letters) - self.done - len(self.gone))

    @property
    def outcome(self) -> str:
        """The outcomes of the replays as text."""
        words = [f"{count:,} {status}" for status, count in self.statuses.most_common()]
        if self.missing:
            words.append(f"{self.missing:,} not known yet")
        return ", ".join(words)

    @property
    def absent(self) -> str:
        """Which letters were missing or changed since the plan, as text."""
        found = ((self.gone, "had gone meanwhile"), (self.changed, "had changed meanwhile, and stay"))
        return "; ".join(f"{len(keys):,} {what}: {few(keys)}" for keys, what in found if keys)

    def stop(self) -> None:
        """End the run after the letters in progress; the others stay in the queue."""
        self._stop.set()
        self._news.set()

    async def look(self) -> None:
        """Make the plan. Raises as `Plan.look` does."""
        async with open_dead_letters(self._settings, self._say) as queue:
            await self.plan.look(queue, self._settings)

    async def perform(
        self,
        *,
        by: str | None = None,
        why: str = "",
        canary: bool = False,
        rate: float | None = None,
        follow: bool = True,
    ) -> None:
        """Execute the plan and, unless `follow` is false, wait for the outcomes. With `canary`, one letter of
        each cause goes first; the others follow if these have outcomes and none is rejected or failed. `by`
        is this process's user by default. Raises as DeadLetterQueue does; `done` is then correct."""
        if not self.plan.going:
            return  # the audit trail must not show a begin without an end
        is_replay = self.plan.kind == "replay"
        cause = "; ".join(self.plan.causes[:CAUSES_TOLD]) or None

        async def record(order: OrderKind, **more: Any) -> None:
            """Add to the audit trail. A failure (no permission, no stream) does not stop the run."""
            entry = Order.now(order, why, by=by or whoami(), run=self.number, cause=cause, **more)
            with contextlib.suppress(WorkerError):
                await publish_order(self._settings, entry)

        try:
            async with contextlib.AsyncExitStack() as stack:
                if is_replay:
                    self._publisher.start()
                    stack.push_async_callback(self._publisher.stop)
                if is_replay and follow and self._settings.journal:
                    await self._begin_to_follow(stack)
                async with open_dead_letters(self._settings, self._say) as queue, queue.change():
                    await record("replaying" if is_replay else "discarding")
                    await self._sweep_all(queue, canary, rate)
                await self._outcomes_are_known()
        finally:
            if self.done:
                more = {"count": self.done, "outcome": self.outcome or None}
                await asyncio.shield(record(self.participle, **more))

    async def _sweep_all(self, queue: DeadLetterQueue, canary: bool, rate: float | None) -> None:
        first = self.plan.canaries if canary and self.is_followed else []
        chosen = set(first)
        rest = [letter for letter in self.plan.going if letter not in chosen]
        if first and rest:
            self.stage = f"Canary of {len(first):,}"
            await self._sweep(queue, first, rate)
            is_known = await self._outcomes_are_known()
            self.has_bad_canary = not is_known or any(self.statuses[status] for status in BAD)
            if self.has_bad_canary:
                return
        if not self.is_stopping:
            self.stage = f"{self.plan.kind.capitalize()}ing"
            await self._sweep(queue, rest or first, rate)

    async def _sweep(self, queue: DeadLetterQueue, letters: Sequence[Planned], rate: float | None) -> None:
        wanted = Counter(letter.identity for letter in letters)
        publish = self._publish if self.plan.kind == "replay" else None
        sweep = Sweep(queue, wanted, self._stop, self._removed, publish, rate)
        await sweep.run()
        if not self.is_stopping:
            self.changed |= sweep.changed
            self.gone |= {key for key, _ in sweep.wanted.elements()} - sweep.changed

    def _publish(self, letter: Letter) -> "asyncio.Future[None] | None":
        try:
            body, resource = self.plan.prepare(letter, self._settings)
        except NotReplayable:
            return None
        if self.is_followed:
            self._expect(letter, resource and recorded_id(resource.id))
        entry = Topology(self._settings.prefix).entry
        return self._publisher.send(replayed(letter, entry, body, force=self.plan.force))

    def _removed(self, letter: Letter) -> None:
        self.done += 1
        self.removed.add(letter.key)
        self.progressed()

    async def _begin_to_follow(self, stack: contextlib.AsyncExitStack) -> None:
        """Follow the journal from its end on, within the context. Raises BrokerUnreachable."""
        try:
            async with open_journal(self._settings) as reader:
                newest = await reader.last()
        except TopologyError as error:
            self._say(f"{error}. The outcomes of the replays are not followed")
            return
        self.is_followed = True
        task = asyncio.create_task(self._follow(0 if newest is None else newest.offset + 1), name="outcomes")
        stack.push_async_callback(cancel_all, task)

    async def _follow(self, start: int) -> None:
        async with contextlib.aclosing(follow(self._settings, start)) as entries:
            async for entry in entries:
                for record in entry.records:
                    self._take(record)

    def _expect(self, letter: Letter, resource_id: str | None) -> None:
        """Expect the outcome of a replay."""
        request_id = recorded_id(letter.id).encode(errors="replace").decode()
        expected = (letter.key, text_of(letter.received_after), resource_id)
        self._expected.setdefault(request_id, []).append(expected)

    def _take(self, record: Record) -> None:
        request_id = str(record.get("id"))
        candidates = self._expected.get(request_id)
        if record.get("replay") is not True or not candidates:
            return
        # Several letters may have one request id. Their arrival times differ, or at least their resources.
        at, resource_id = record.get("receivedAt"), record.get("resourceId")
        best = max(candidates, key=lambda each: (each[1] == at, each[2] == resource_id))
        candidates.remove(best)
        if not candidates:
            del self._expected[request_id]
        self.outcomes[best[0]] = record
        self.statuses[str(record.get("status"))] += 1
        self._news.set()
        self.progressed()

    async def _outcomes_are_known(self) -> bool:
        """Wait for the outcomes of the replays so far; False if some stay unknown."""
        stage, absent = self.stage, 0
        self.stage = f"{stage}: waiting for the outcomes"
        while self.missing and not self.is_stopping and absent < ABSENT_LOOKS:
            self._news.clear()
            try:
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._news.wait()
                absent = 0
            except TimeoutError:
                absent = 0 if await self._has_workers() else absent + 1
        self.stage = stage
        if self.missing and not self.is_stopping:
            self._say(
                f"No worker consumes requests: {self.missing:,} wait in the queue until one is started. "
                "ott-worker journal shows their outcomes"
            )
        return not self.missing

    async def _has_workers(self) -> bool:
        """Whether a worker may be running; reports what stops it."""
        with contextlib.suppress(WorkerError):
            if why := obstacle(await read_workers(self._settings)):
                self._say(why[:1].lower() + why[1:].rstrip("."))
                return True
        try:
            return await look_for_workers(self._settings) > 0
        except BrokerUnreachable:
            return True

    def publish_turned_down(self, queue: str, why: str) -> None:
        self._say(f"{queue} rejects the message ({why}): trying again")

    def publisher_lost(self, why: str) -> None:
        self._say(f"{why}: trying again")

    def publisher_connected(self) -> None:
        self._say("")
