"""One replay or discard, from its plan to the outcome of its last letter."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.broker.control_stream import publish_order
from worker.console.patch_form import Change
from worker.contract.control import Order, OrderKind
from worker.dead_letters import replay as replaying
from worker.dead_letters.box import DeadLetterBox, Progress, open_box
from worker.dead_letters.outcomes import OutcomeFollower
from worker.dead_letters.patch import Patch, SamePatch
from worker.dead_letters.plan import Forecast, Outcome, Plan, Planner
from worker.dead_letters.selection import Selection
from worker.errors import WorkerError
from worker.events import EventListener
from worker.settings import Settings

Kind = Literal["replay", "discard"]
Phase = Literal["planning", "planned", "running", "done", "cancelled", "stopped", "failed"]
Canary = Literal["one", "tenth", "none"]

STAYING = frozenset({"unproven", "unfit"})
"""Forecasts of letters that a replay leaves where they are."""
BAD = frozenset({"rejected", "failed"})
"""Statuses that make a canary fail."""


_IN_WORDS = {
    "replayed": "would be replayed",
    "superseded": "would be answered superseded",
    "rejected": "would be rejected again as they are",
    "unfit": "still invalid after the change: they stay",
    "unproven": "could overwrite something newer, since the journal does not reach back: they stay",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """What the plan says of one letter."""

    id: str
    platform: str | None
    resource_id: str | None
    forecast: Outcome
    why: str


class Run(EventListener):
    """`phase` tells how far it is, `problem` why it failed, `notice` what holds it up."""

    def __init__(
        self,
        number: str,
        settings: Settings,
        *,
        kind: Kind,
        ids: Collection[str],
        patch: Patch,
        changes: Sequence[Change] = (),
    ) -> None:
        self._settings = settings
        self._patch = patch
        self._task: asyncio.Task[None] | None = None
        self._replay: replaying.Replay | None = None
        self._stop = asyncio.Event()
        self.number = number
        self.kind = kind
        self.ids = frozenset(ids)
        self.changes = changes
        self.phase: Phase = "planning"
        self.planned: list[Planned] = []
        self.forecasts: Counter[str] = Counter()
        self.outcomes: dict[str, Mapping[str, Any]] = {}
        self.statuses: Counter[str] = Counter()
        self.done = 0
        self.by = self.why = ""
        self.stage = ""
        self.problem = ""
        self.notice = ""

    @property
    def count(self) -> int:
        """Letters that it is about to replay or discard."""
        return sum(count for forecast, count in self.forecasts.items() if forecast not in STAYING)

    @property
    def is_busy(self) -> bool:
        return self.phase in ("planning", "running")

    @property
    def is_cancelling(self) -> bool:
        return self._stop.is_set() and self.is_busy

    @property
    def tenth(self) -> int:
        """Letters of a canary of 10 %."""
        return math.ceil(self.count / 10)

    @property
    def sentence(self) -> str:
        """The plan in words."""
        if self.kind == "discard":
            return "They are removed for good, and nobody is told."
        words = [
            f"{self.forecasts[forecast]:,} {text}"
            for forecast, text in _IN_WORDS.items()
            if self.forecasts[forecast]
        ]
        return f"{', '.join(words)}." if words else "None of them lies there any more."

    @property
    def result(self) -> str:
        """What came of it, in words."""
        words = [f"{count:,} {status}" for status, count in self.statuses.most_common()]
        return f"{', '.join(words)}." if words else "The journal tells what comes of them."

    def plan(self) -> "asyncio.Task[None]":
        """Begin to find out what it would do."""
        self._task = asyncio.create_task(self._guarded(self._plan()))
        return self._task

    def start(
        self, *, by: str, why: str, canary: Canary, rate: float | None, ended: Callable[[], None]
    ) -> None:
        """Begin to do it; `ended` is called at the end."""
        self.phase, self.by, self.why = "running", by, why
        work = self._discard() if self.kind == "discard" else self._replay_all(canary, rate)
        self._task = asyncio.create_task(self._guarded(self._recorded(work)))
        self._task.add_done_callback(lambda _: ended())

    def cancel(self) -> None:
        """End it after what is under way; the letters that are left lie where they were."""
        self._stop.set()
        if self._replay is not None:
            self._replay.stop.set()

    async def close(self) -> None:
        """End it, and wait for that."""
        if self._task is not None and not self._task.done():
            self.cancel()
            if self.phase == "planning":
                self._task.cancel()
            await asyncio.wait({self._task})

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except WorkerError as error:
            self.phase, self.problem = "failed", str(error)
        except asyncio.CancelledError:
            self.phase = "cancelled"
        except BaseException:
            self.phase, self.problem = "failed", "The console failed: its standard error says where."
            raise

    async def _plan(self) -> None:
        selection = Selection(ids=self.ids)
        async with open_box(self._settings, self._say) as box:
            if self.kind == "replay":
                await Planner(self._settings, selection, SamePatch(self._patch)).make(box, self._add)
            else:
                async with contextlib.aclosing(box.look(selection)) as letters:
                    async for letter in letters:
                        self._add(Forecast(letter, "discarded"))
        self.phase, self.notice = "planned", ""

    def _add(self, forecast: Forecast) -> None:
        letter = forecast.letter
        self.planned.append(
            Planned(letter.id, letter.platform, letter.resource_id, forecast.outcome, forecast.why)
        )
        self.forecasts[forecast.outcome] += 1

    async def _recorded(self, work: Awaitable[Phase]) -> None:
        """Await `work`, and record what was done even if it fails or is cancelled."""
        try:
            phase = await work
        finally:
            if self.done:
                order: OrderKind = "discarded" if self.kind == "discard" else "replayed"
                done = Order.now(order, self.why, by=self.by, count=self.done)
                await asyncio.shield(publish_order(self._settings, done))
        self.phase = phase

    @contextlib.asynccontextmanager
    async def _changing(self, change: Literal["replaying", "discarding"]) -> AsyncIterator[DeadLetterBox]:
        async with (
            open_box(self._settings, self._say) as box,
            box.change(change, by=self.by, why=self.why),
        ):
            self.notice = ""
            yield box

    async def _discard(self) -> Phase:
        self.stage = "Discarding"
        async with self._changing("discarding") as box:
            plan = Plan(total=await box.depth(), matching=len(self.planned))
            await replaying.discard(box, Selection(ids=self.ids), plan, self._progress())
        return "done"

    async def _replay_all(self, canary: Canary, rate: float | None) -> Phase:
        going = [letter.id for letter in self.planned if letter.forecast not in STAYING]
        # A request may lie there twice: its letters go together.
        first = set(going[: {"one": 1, "tenth": self.tenth, "none": 0}[canary]])
        rest = set(going) - first
        async with self._changing("replaying") as box, self._following() as follower:
            if first and rest:
                self.stage = f"Canary of {len(first):,}"
                await self._replay_some(box, first, rate, follower)
                if not await self._outcomes_of(follower) or self._has_failed(first):
                    return "cancelled" if self._stop.is_set() else "stopped"
            if not self._stop.is_set():
                self.stage = "Replaying"
                await self._replay_some(box, rest or first, rate, follower)
                await self._outcomes_of(follower)
        return "cancelled" if self._stop.is_set() else "done"

    def _has_failed(self, ids: Collection[str]) -> bool:
        return any(self.outcomes[each].get("status") in BAD for each in ids if each in self.outcomes)

    @contextlib.asynccontextmanager
    async def _following(self) -> AsyncIterator[OutcomeFollower | None]:
        if not self._settings.journal:
            yield None
            return
        async with OutcomeFollower(self._settings, self._settled) as follower:
            yield follower

    def _settled(self, record: Mapping[str, Any]) -> None:
        self.outcomes[str(record["id"])] = record
        self.statuses[str(record.get("status"))] += 1

    async def _replay_some(
        self, box: DeadLetterBox, ids: Collection[str], rate: float | None, follower: OutcomeFollower | None
    ) -> None:
        selection, patch = Selection(ids=frozenset(ids)), SamePatch(self._patch)
        self._replay = replaying.Replay(self._settings, selection, patch, self, rate=rate, follower=follower)
        try:
            matching = sum(letter.id in selection.ids for letter in self.planned)
            plan = Plan(total=await box.depth(), matching=matching)
            await self._replay.run(box, plan, self._progress())
        finally:
            self._replay = None

    def _progress(self) -> Progress:
        """Counts on from what is done so far."""
        before, progress = self.done, Progress()
        progress.tell = lambda: setattr(self, "done", before + progress.done)
        return progress

    async def _outcomes_of(self, follower: OutcomeFollower | None) -> bool:
        """Wait for the outcomes of what was replayed so far; False where nobody will tell them."""
        if follower is None:
            return True
        stage, self.stage = self.stage, f"{self.stage}: waiting for what becomes of them"
        are_known = await follower.wait(self._stop, self._say)
        if not are_known and not self._stop.is_set():
            self._say("No worker takes requests: start one to know what becomes of the letters.")
        self.stage = stage
        return are_known

    def _say(self, notice: str) -> None:
        self.notice = notice

    def publish_turned_down(self, queue: str, why: str) -> None:
        self.notice = f"{queue} does not take the message ({why}): trying again."

    def publisher_lost(self, why: str) -> None:
        self.notice = f"{why}: trying again."

    def publisher_connected(self) -> None:
        self.notice = ""


class Runs:
    """The runs of this console, the newest last."""

    KEPT = 50

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def add(self, run: Run) -> None:
        """Keep it; the oldest that have ended are forgotten."""
        self._runs[run.number] = run
        for number in [number for number, each in self._runs.items() if not each.is_busy][: -self.KEPT]:
            del self._runs[number]

    def get(self, number: str) -> Run | None:
        return self._runs.get(number)

    @property
    def active(self) -> Run | None:
        """The one that changes something now."""
        return next((run for run in self._runs.values() if run.phase == "running"), None)

    async def close(self) -> None:
        """End all."""
        for run in self._runs.values():
            await run.close()
