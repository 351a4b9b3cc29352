"""The runs of this console: replays and discards, from their plans to the outcomes of their last letters."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from worker.console.patch_form import Change
from worker.contract.timestamps import now
from worker.dead_letters.plan import Outcome, Planned, Wish
from worker.dead_letters.run import BAD, Canary, Run
from worker.errors import UsageError, WorkerError
from worker.settings import Settings

Phase = Literal["planning", "planned", "running", "done", "cancelled", "stopped", "failed"]

LETTERS_SHOWN = 200  # of a run; of one that has ended only these are kept
_IN_WORDS: dict[Outcome, str] = {
    "replayed": "would be replayed",
    "superseded": "would be answered superseded, for newer ones were registered",
    "rejected": "would be rejected again, and stay: correct them first",
    "unfit": "cannot be replayed, and stay",
    "unproven": "not safe to replay (the journal does not go back far enough), and stay",
}


class ConsoleRun:
    """A run and what its page shows of it. `phase` tells how far it is, `problem` why it failed, `notice`
    what holds it up, `began_at` when it was planned."""

    def __init__(self, settings: Settings, wish: Wish, count: int, changes: Sequence[Change] = ()) -> None:
        self.run = Run(settings, wish, self._say)
        self.number = self.run.number
        self.kind = wish.kind
        self.changes = changes
        self.asked = count
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
    def is_cancelling(self) -> bool:
        return self.run.is_stopping and self.is_busy

    @property
    def done(self) -> int:
        return self.run.done

    @property
    def sentence(self) -> str:
        """The plan in words."""
        if self.kind == "discard":
            return "They are removed for good, and nobody is told."
        words = [f"{self.counts[each]:,} {text}" for each, text in _IN_WORDS.items() if self.counts.get(each)]
        return f"{'; '.join(words)}." if words else "None of them is there any more."

    @property
    def absent(self) -> str:
        """Which letters were not there as they were planned."""
        words = [
            f"{len(keys):,} {what}: {', '.join(sorted(keys)[:5])}{'…' if len(keys) > 5 else ''}."
            for keys, what in (
                (self.run.gone, "had gone meanwhile"),
                (self.run.changed, "had changed meanwhile and stay"),
            )
            if keys
        ]
        return " ".join(words)

    def outcome_of(self, letter: Planned) -> dict[str, Any]:
        """The journal's record of a letter's replay, as far as there is one."""
        return self.run.outcomes.get(letter.key, {})

    def worst_first(self) -> list[Planned]:
        """What somebody must look at comes first, then what has an outcome."""
        staying = self.run.wish.staying

        def rank(letter: Planned) -> int:
            status = self.outcome_of(letter).get("status")
            if status in BAD or (status is None and letter.outcome in staying):
                return 0
            return 1 if "superseded" in (letter.outcome, status) else 2

        return sorted(self.letters, key=rank)

    def plan(self) -> "asyncio.Task[None]":
        """Begin to find out what it would do."""
        self._task = asyncio.create_task(self._guarded(self._plan()))
        return self._task

    def start(
        self, *, by: str, why: str, canary: Canary, rate: float | None, ended: Callable[[], None]
    ) -> None:
        """Begin to do it; `ended` is called at the end."""
        self.phase, self.by, self.why = "running", by, why
        self._task = asyncio.create_task(self._guarded(self._perform(canary, rate)))
        self._task.add_done_callback(lambda _: ended())

    def cancel(self) -> None:
        """End it after what is under way; the letters that are left stay where they are."""
        self.run.stop()

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
        plan = await self.run.plan()
        self.letters, self.counts, self.causes = plan.letters, dict(plan.counts), plan.causes
        self.count, self.matching, self.refusal = len(plan.going), len(plan.letters), plan.refusal
        self.canaries = len({letter.facts.cause for letter in plan.going if letter.outcome == "replayed"})
        self.phase, self.notice = "planned", ""

    async def _perform(self, canary: Canary, rate: float | None) -> None:
        try:
            await self.run.perform(by=self.by, why=self.why, canary=canary, rate=rate)
        finally:
            self.letters = self.worst_first()[:LETTERS_SHOWN]
            self.run.planned = None
        if self.run.is_stopping:
            self.phase = "cancelled"
        else:
            self.phase = "stopped" if self.run.has_bad_canary else "done"

    def _say(self, notice: str) -> None:
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
