"""The runs of this console: replays and discards, from their plans to the outcomes of their last letters."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Literal

from worker.console.forms import Change
from worker.dead_letters.plan import FORECASTS, Plan, Planned
from worker.dead_letters.run import BAD, Run
from worker.errors import UsageError, WorkerError
from worker.settings import Settings

Phase = Literal["planning", "planned", "running", "done", "cancelled", "stopped", "failed"]

LETTERS_SHOWN = 200  # of a run


class ConsoleRun(Run):
    """A run and how far it is: `phase`, `problem` why it failed, `notice` what holds it up. `asked` letters
    were to be looked at, with `changes` to them."""

    def __init__(self, settings: Settings, plan: Plan, asked: int, changes: Sequence[Change] = ()) -> None:
        super().__init__(settings, plan, self._tell)
        self.asked = asked
        self.changes = changes
        self.phase: Phase = "planning"
        self.by = self.why = self.problem = self.notice = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.phase in ("planning", "running")

    @property
    def count(self) -> int:
        """How many letters go."""
        return len(self.plan.going)

    def document(self) -> dict[str, Any]:
        """The run as JSON, with the letters that somebody must look at first."""
        return {
            "run": self.number,
            "kind": self.plan.kind,
            "phase": self.phase,
            "stage": self.stage,
            "problem": self.problem or None,
            "refusal": self.plan.refusal or None,
            "plan": dict(self.plan.counts),
            "causes": self.plan.causes,
            "count": self.count,
            "done": self.done,
            "gone": sorted(self.gone),
            "changed": sorted(self.changed),
            "outcomes": dict(self.statuses),
            "letters": [self._letter(letter) for letter in self._worst_first()[:LETTERS_SHOWN]],
        }

    def _worst_first(self) -> list[Planned]:
        def rank(letter: Planned) -> int:
            status = self.outcomes.get(letter.key, {}).get("status")
            if status in BAD or (status is None and letter.outcome in self.plan.staying):
                return 0
            return 1 if "superseded" in (letter.outcome, status) else 2

        return sorted(self.plan.letters, key=rank)

    def _letter(self, letter: Planned) -> dict[str, Any]:
        """One of its letters: what became of it so far, and the journal's record of its replay."""
        record = self.outcomes.get(letter.key, {})
        told = ("status", "message", "httpStatus", "supersededBy", "reason")
        return {
            "letter": letter.key,
            "id": letter.facts["id"],
            "ottPlatformName": letter.facts["ottPlatformName"],
            "resourceId": letter.facts["resourceId"],
            "forecast": letter.outcome,
            "fate": self._fate(letter),
            "why": letter.why,
            "errors": list(record.get("errors") or ()),
            **{name: record.get(name) for name in told},
        }

    def _fate(self, letter: Planned) -> str:
        if self.phase in ("planning", "planned"):
            return FORECASTS[letter.outcome].label
        if letter.key in self.removed:
            return "discarded" if self.plan.kind == "discard" else "replayed, not known yet"
        if letter.key in self.gone:
            return "gone"
        if letter.key in self.changed:
            return "changed, stayed"
        return "-" if self.is_busy else "stayed"

    def begin_plan(self) -> "asyncio.Task[None]":
        """Begin to find out what it would do."""
        return self._begin(self._plan())

    def begin(self, *, by: str, why: str, canary: bool, rate: float | None) -> "asyncio.Task[None]":
        """Begin to do it."""
        self.phase, self.by, self.why = "running", by, why
        return self._begin(self._perform(canary, rate))

    def _begin(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        self._task = asyncio.create_task(self._guarded(work))
        return self._task

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
        await self.look()
        self.phase, self.notice = "planned", ""

    async def _perform(self, canary: bool, rate: float | None) -> None:
        await self.perform(by=self.by, why=self.why, canary=canary, rate=rate)
        if self.is_stopping:
            self.phase = "cancelled"
        else:
            self.phase = "stopped" if self.has_bad_canary else "done"

    def _tell(self, notice: str) -> None:
        self.notice = notice


class Runs:
    """The runs of this console, the newest last."""

    KEPT = 50
    LETTERS_KEPT = 100_000  # in all plans together

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
        return sum(each.asked for each in self._runs.values())

    def __contains__(self, number: str) -> bool:
        return number in self._runs

    def get(self, number: str) -> ConsoleRun | None:
        return self._runs.get(number)

    @property
    def active(self) -> ConsoleRun | None:
        """The one that changes something now."""
        return next((run for run in self._runs.values() if run.phase == "running"), None)

    async def close(self) -> None:
        """End all."""
        for run in self._runs.values():
            await run.close()
