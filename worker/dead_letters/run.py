"""One replay or discard of dead letters, from its plan to the outcome of its last letter: for the commands
and for the console.

A run acts on the letters that its plan found, and on no other: one that came since stays, one that has gone
or was changed is told.
"""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from worker.broker.journal import follow, open_journal
from worker.broker.requester import look_for_workers
from worker.broker.situation import obstacle
from worker.broker.status import publish_order, read_workers, whoami
from worker.contract.settlement import recorded_id
from worker.contract.status import Order, OrderKind
from worker.contract.timestamps import text_of
from worker.dead_letters.letter import Letter, few
from worker.dead_letters.plan import Plan, Planned
from worker.dead_letters.queue import DeadLetterQueue, open_dead_letters
from worker.dead_letters.replay import ReplaySweep, Sweep
from worker.errors import BrokerUnreachable, TopologyError, WorkerError
from worker.events import EventListener
from worker.settings import Settings

CAUSES_TOLD = 3
POLL_INTERVAL = 0.1  # seconds
LOOK_INTERVAL = 1.0  # seconds without an outcome before looking for workers
ABSENT_LOOKS = 2  # looks that find no worker before giving up

BAD = frozenset({"rejected", "failed"})  # statuses that make a canary fail

Record = dict[str, Any]


class Run(EventListener):
    """`look` first, then `perform` once. `say` is told what holds it up; `progressed` is called when a letter
    is done.

    `done` letters were removed (`removed` are their ids), `left` stay. `outcomes` are the journal's records
    by the ids of letters, and `missing` counts replays whose outcome is not known. `gone` and `changed` are
    ids of letters that were not there as they were planned."""

    def __init__(self, settings: Settings, plan: Plan, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._stop = asyncio.Event()
        self.number = secrets.token_hex(4)
        self.plan = plan
        self.progressed: Callable[[], None] = lambda: None
        self.stage = ""
        self.done = self.missing = 0
        self.outcomes: dict[str, Record] = {}
        self.statuses: Counter[str] = Counter()
        self.removed: set[str] = set()
        self.gone: set[str] = set()
        self.changed: set[str] = set()
        self.has_bad_canary = False
        self._follower: OutcomeFollower | None = None

    @property
    def participle(self) -> str:
        """What has happened to the letters that are done."""
        return "replayed" if self.plan.kind == "replay" else "discarded"

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    @property
    def is_followed(self) -> bool:
        """Whether the outcomes are read from the journal."""
        return self._follower is not None

    @property
    def left(self) -> int:
        """Letters of the plan that stay, because they cannot be replayed or it ended before."""
        return max(0, len(self.plan.letters) - self.done - len(self.gone))

    @property
    def outcome(self) -> str:
        """What became of the replays, in words."""
        words = [f"{count:,} {status}" for status, count in self.statuses.most_common()]
        if self.missing:
            words.append(f"{self.missing:,} not known yet")
        return ", ".join(words)

    @property
    def absent(self) -> str:
        """Which letters were not there as they were planned, in words."""
        found = ((self.gone, "had gone meanwhile"), (self.changed, "had changed meanwhile, and stay"))
        return "; ".join(f"{len(keys):,} {what}: {few(keys)}" for keys, what in found if keys)

    def stop(self) -> None:
        """End it after what is under way; the letters that are left stay where they are."""
        self._stop.set()

    async def look(self) -> None:
        """Find out what would be done. Raises as `Plan.look`."""
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
        """Do what was planned, and unless `follow` is false wait for what becomes of it. With a `canary` one
        letter of each cause goes first; the others follow once all of these are registered. `by` is this
        terminal's user by default. Raises as DeadLetterQueue does; `done` tells what was done until then."""
        plan, by = self.plan, by or whoami()
        if not plan.going:
            return  # a beginning without an end would look like one that is under way
        is_replay = self.plan.kind == "replay"
        begun: OrderKind = "replaying" if is_replay else "discarding"
        note = {"run": self.number, "cause": "; ".join(plan.causes[:CAUSES_TOLD]) or None}
        try:
            async with contextlib.AsyncExitStack() as stack:
                if follow and is_replay and self._settings.journal:
                    follower = OutcomeFollower(self._settings, self._settled)
                    try:
                        self._follower = await stack.enter_async_context(follower)
                    except TopologyError as error:
                        self._say(f"{error}. What becomes of the letters is not followed")
                async with (
                    open_dead_letters(self._settings, self._say) as queue,
                    queue.change(Order.now(begun, why, by=by, **note)),
                ):
                    await self._publish(queue, plan, canary, rate)
                await self._outcomes_are_known()
        finally:
            if self.done:
                done: OrderKind = "replayed" if is_replay else "discarded"
                more = {**note, "count": self.done, "outcome": self.outcome or None}
                await asyncio.shield(self._record(Order.now(done, why, by=by, **more)))

    async def _publish(self, queue: DeadLetterQueue, plan: Plan, canary: bool, rate: float | None) -> None:
        first = plan.canaries if canary and self.is_followed else []
        keys = {letter.key for letter in first}
        rest = [letter for letter in plan.going if letter.key not in keys]
        if first and rest:
            self.stage = f"Canary of {len(first):,}"
            await self._sweep(queue, first, rate)
            is_known = await self._outcomes_are_known()
            self.has_bad_canary = not is_known or any(self.statuses[status] for status in BAD)
            if self.has_bad_canary:
                return
        if not self.is_stopping:
            self.stage = "Replaying" if self.plan.kind == "replay" else "Discarding"
            await self._sweep(queue, rest or first, rate)

    async def _sweep(self, queue: DeadLetterQueue, letters: Sequence[Planned], rate: float | None) -> None:
        """Replay or discard these."""
        wanted = Counter(letter.identity for letter in letters)
        if self.plan.kind == "discard":
            sweep = Sweep(queue, wanted, self._stop, self._removed)
        else:
            sweep = ReplaySweep(
                *(queue, wanted, self._stop, self._removed),
                settings=self._settings,
                plan=self.plan,
                rate=rate,
                events=self,
                sent=self._follower.expect if self._follower is not None else lambda *_: None,
            )
        await sweep.run()
        if not self.is_stopping:
            self.changed |= sweep.changed
            self.gone |= {key for key, _ in sweep.wanted.elements()} - sweep.changed

    def _removed(self, letter: Letter) -> None:
        self.done += 1
        self.removed.add(letter.key)
        self.progressed()

    async def _outcomes_are_known(self) -> bool:
        """Wait for the outcomes of what was replayed so far; False where nobody will tell them."""
        if self._follower is None:
            return True
        stage, self.stage = self.stage, f"{self.stage}: waiting for what becomes of them"
        are_known = await self._follower.wait(self._stop, self._say)
        self.stage, self.missing = stage, self._follower.missing
        if not are_known and not self.is_stopping:
            self._say(
                f"No worker takes requests: {self.missing:,} wait in the queue until one is started. "
                "ott-worker journal shows what becomes of them"
            )
        return are_known

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


class _Expected(NamedTuple):
    key: str
    received_at: str
    resource_id: str | None


class OutcomeFollower:
    """Follows the journal while its context lasts, since the reply of a replay goes to whoever sent the
    request. Calls `settled` with the id of each letter whose replay was expected, and with the record of that
    (contract §8). Entering raises TopologyError (there is no journal) or
    BrokerUnreachable."""

    def __init__(self, settings: Settings, settled: Callable[[str, Record], None]) -> None:
        self._settings = settings
        self._settled = settled
        self._expected: dict[str, list[_Expected]] = {}
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        async with open_journal(self._settings) as reader:
            newest = await reader.last()
        self._next = 0 if newest is None else newest.offset + 1
        self._task = asyncio.create_task(self._follow(), name="outcomes")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def missing(self) -> int:
        """Replays whose outcome is not known yet."""
        return sum(map(len, self._expected.values()))

    def expect(self, letter: Letter, resource_id: str | None) -> None:
        """Expect the replay of a letter, by what its record will tell."""
        name = recorded_id(letter.id).encode(errors="replace").decode()
        received_at = text_of(letter.received_after)
        expected = _Expected(letter.key, received_at, resource_id and recorded_id(resource_id))
        self._expected.setdefault(name, []).append(expected)

    async def wait(self, stop: asyncio.Event, say: Callable[[str], None]) -> bool:
        """Wait until all outcomes are known, and `say` once what this waits for. False where `stop` was set,
        or no worker is there to settle them."""
        clock = asyncio.get_running_loop().time
        missing, look_at, absent = self.missing, clock() + LOOK_INTERVAL, 0
        said = {""}
        while self._expected and not stop.is_set() and absent < ABSENT_LOOKS:
            await asyncio.sleep(POLL_INTERVAL)
            if self.missing < missing:
                missing, look_at, absent = self.missing, clock() + LOOK_INTERVAL, 0
            elif clock() > look_at:
                look_at = clock() + LOOK_INTERVAL
                is_there, why = await self._workers()
                absent = 0 if is_there else absent + 1
                if why not in said:
                    said.add(why)
                    say(why)
        return not self._expected

    async def _workers(self) -> tuple[bool, str]:
        """Whether any worker runs, and why it takes long."""
        with contextlib.suppress(WorkerError):
            if why := obstacle(await read_workers(self._settings)):
                return True, why[:1].lower() + why[1:].rstrip(".")
        try:
            return await look_for_workers(self._settings) > 0, ""
        except BrokerUnreachable:
            return True, "RabbitMQ does not answer: waiting"

    async def _follow(self) -> None:
        async with contextlib.aclosing(follow(self._settings, self._next)) as entries:
            async for entry in entries:
                for record in entry.records:
                    self._take(record)

    def _take(self, record: Record) -> None:
        request_id = str(record.get("id"))
        bearers = self._expected.get(request_id)
        if record.get("replay") is not True or not bearers:
            return
        # Several letters may bear one request id. Their times of arrival differ, or at least their resources.
        told = (record.get("receivedAt"), record.get("resourceId"))
        best = max(bearers, key=lambda each: (each.received_at == told[0], each.resource_id == told[1]))
        bearers.remove(best)
        if not bearers:
            del self._expected[request_id]
        self._settled(best.key, record)
