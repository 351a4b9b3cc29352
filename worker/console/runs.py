"""The runs of this console: replays and discards, from their plans to the outcomes of their last letters."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from worker.console.forms import Change
from worker.contract.timestamps import now
from worker.dead_letters.plan import Outcome, Planned, Wish
from worker.dead_letters.run import BAD, Canary, Run
from worker.errors import UsageError, WorkerError
from worker.settings import Settings

Phase = Literal["planning", "planned", "running", "done", "cancelled", "stopped", "failed"]

LETTERS_SHOWN = 200  # of a run; of one that has ended only these are kept
NAMED = 5  # letters that had gone or changed
_IN_WORDS: dict[Outcome, str] = {
    "replayed": "would be replayed",
    "superseded": "would be answered superseded, for newer ones were registered",
    "rejected": "would be rejected again, and stay: correct them first",
    "unfit": "cannot be replayed, and stay",
    "unproven": "not safe to replay (the journal does not go back far enough), and stay",
}


class ConsoleRun(Run):
    """A run and what its page shows of it. `phase` tells how far it is, `problem` why it failed, `notice`
    what holds it up, `began_at` when it was planned. `asked` letters were to be looked at; of those that
    match, `letters` are shown, and `count` go, after `canaries` of them where that is wanted."""

    def __init__(self, settings: Settings, wish: Wish, asked: int, changes: Sequence[Change] = ()) -> None:
        super().__init__(settings, wish, self._tell)
        self.asked = asked
        self.changes = changes
        self.phase: Phase = "planning"
        self.began_at = now()
        self.letters: Sequence[Planned] = ()
        self.counts: dict[Outcome, int] = {}
        self.causes: Sequence[str] = ()
        self.count = self.matching = self.canaries = 0
        self.by = self.why = self.problem = self.notice = self.refusal = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.phase in ("planning", "running")

    @property
    def sentence(self) -> str:
        """The plan in words."""
        if self.wish.kind == "discard":
            return "They are removed for good, and nobody is told."
        words = [f"{self.counts[each]:,} {text}" for each, text in _IN_WORDS.items() if self.counts.get(each)]
        return f"{'; '.join(words)}." if words else "None of them is there any more."

    @property
    def absent(self) -> str:
        """Which letters were not there as they were planned."""
        return " ".join(
            f"{len(keys):,} {what}: {', '.join(sorted(keys)[:NAMED])}{'…' if len(keys) > NAMED else ''}."
            for keys, what in (
                (self.gone, "had gone meanwhile"),
                (self.changed, "had changed meanwhile and stay"),
            )
            if keys
        )

    def worst_first(self) -> list[Planned]:
        """What somebody must look at comes first, then what has an outcome."""

        def rank(letter: Planned) -> int:
            status = self.outcomes.get(letter.key, {}).get("status")
            if status in BAD or (status is None and letter.outcome in self.wish.staying):
                return 0
            return 1 if "superseded" in (letter.outcome, status) else 2

        return sorted(self.letters, key=rank)

    def document(self) -> dict[str, Any]:
        """The run as JSON."""
        return {
            "run": self.number,
            "kind": self.wish.kind,
            "phase": self.phase,
            "stage": self.stage,
            "problem": self.problem or None,
            "refusal": self.refusal or None,
            "plan": dict(self.counts),
            "causes": list(self.causes),
            "count": self.count,
            "done": self.done,
            "gone": sorted(self.gone),
            "changed": sorted(self.changed),
            "outcomes": dict(self.statuses),
        }

    def letter(self, letter: Planned) -> dict[str, Any]:
        """One of its letters as JSON: the forecast, and the journal's record of its replay."""
        record = self.outcomes.get(letter.key, {})
        told = ("status", "message", "httpStatus", "supersededBy", "reason")
        return {
            "letter": letter.key,
            "id": letter.facts.id,
            "ottPlatformName": letter.facts.platform,
            "resourceId": letter.facts.resource_id,
            "forecast": letter.outcome,
            "why": letter.why,
            "errors": list(record.get("errors") or ()),
            **{name: record.get(name) for name in told},
        }

    def begin_plan(self) -> "asyncio.Task[None]":
        """Begin to find out what it would do."""
        self._task = asyncio.create_task(self._guarded(self._plan()))
        return self._task

    def begin(
        self, *, by: str, why: str, canary: Canary, rate: float | None, ended: Callable[[], None]
    ) -> None:
        """Begin to do it; `ended` is called at the end."""
        self.phase, self.by, self.why = "running", by, why
        self._task = asyncio.create_task(self._guarded(self._perform(canary, rate)))
        self._task.add_done_callback(lambda _: ended())

    async def close(self) -> None:
        """End it, and wait for that."""
        if self._task is not None and not self._task.done():
            self.stop()
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
        plan = await self.plan()
        self.letters, self.counts, self.causes = plan.letters, dict(plan.counts), plan.causes
        self.count, self.matching, self.refusal = len(plan.going), len(plan.letters), plan.refusal
        self.canaries = len({letter.facts.cause for letter in plan.going if letter.outcome == "replayed"})
        self.phase, self.notice = "planned", ""

    async def _perform(self, canary: Canary, rate: float | None) -> None:
        try:
            await self.perform(by=self.by, why=self.why, canary=canary, rate=rate)
        finally:
            self.letters = self.worst_first()[:LETTERS_SHOWN]
            self.planned = None
        if self.is_stopping:
            self.phase = "cancelled"
        else:
            self.phase = "stopped" if self.has_bad_canary else "done"

    def _tell(self, notice: str) -> None:
        self.notice = notice


class Runs:
    """The runs of this console, the newest last."""

    KEPT = 50
    LETTERS_KEPT = 200_000  # in all plans together

    def __init__(self) -> None:
        self._runs: dict[str, ConsoleRun] = {}

    def add(self, run: ConsoleRun) -> None:
        """Keep it; the oldest that have ended, and plans that nobody started, are forgotten. Raises
        UsageError where too many are under way."""
        idle = [each for each in self._runs.values() if not each.is_busy]
        while idle and (len(self._runs) >= self.KEPT or self._letters + run.asked > self.LETTERS_KEPT):
            del self._runs[idle.pop(0).number]
        if len(self._runs) >= self.KEPT:
            raise UsageError("Too many plans are being made: try again when they are done.")
        self._runs[run.number] = run

    @property
    def _letters(self) -> int:
        return sum(max(len(each.letters), each.asked * each.is_busy) for each in self._runs.values())

    def get(self, number: str) -> ConsoleRun | None:
        return self._runs.get(number)

    def newest_first(self) -> list[ConsoleRun]:
        """All that are kept."""
        return list(self._runs.values())[::-1]

    @property
    def active(self) -> ConsoleRun | None:
        """The one that changes something now."""
        return next((run for run in self._runs.values() if run.phase == "running"), None)

    async def close(self) -> None:
        """End all."""
        for run in self._runs.values():
            await run.close()
