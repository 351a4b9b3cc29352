"""The console's runs: replays and discards, from plan to outcome."""

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
RUNS_KEPT = 50
LETTERS_KEPT = 200_000  # in all plans together
TOLD = ("status", "message", "httpStatus", "supersededBy", "reason")


class ConsoleRun(Run):
    """A run with its `phase`, the `problem` that ended it, and a `notice` of what it waits for. `asked` is
    the number of selected letters, and `changes` are their corrections."""

    def __init__(self, settings: Settings, plan: Plan, asked: int, changes: Sequence[Change] = ()) -> None:
        super().__init__(settings, plan, self._tell)
        self.asked = asked
        self.changes = changes
        self.phase: Phase = "planning"
        self.by = self.why = self.problem = self.notice = ""
        self.task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.phase in ("planning", "running")

    @property
    def count(self) -> int:
        """The number of letters that will be replayed or discarded."""
        return len(self.plan.going)

    def document(self) -> dict[str, Any]:
        """The run as a JSON document; letters that need attention come first."""
        letters = sorted(self.plan.letters, key=self._urgency)[:LETTERS_SHOWN]
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
            "letters": [self._letter(letter) for letter in letters],
        }

    def _urgency(self, letter: Planned) -> int:
        status = self.outcomes.get(letter.key, {}).get("status")
        if status in BAD or (status is None and letter.outcome in self.plan.staying):
            return 0
        return 1 if "superseded" in (letter.outcome, status) else 2

    def _letter(self, letter: Planned) -> dict[str, Any]:
        """A letter's state, and the journal's record of its replay."""
        record = self.outcomes.get(letter.key, {})
        return {
            "letter": letter.key,
            "id": letter.facts["id"],
            "ottPlatformName": letter.facts["ottPlatformName"],
            "resourceId": letter.facts["resourceId"],
            "forecast": letter.outcome,
            "fate": self._fate(letter),
            "why": letter.why,
            "errors": list(record.get("errors") or ()),
            **{name: record.get(name) for name in TOLD},
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

    def begin(self, phase: Phase, work: Awaitable[object]) -> "asyncio.Task[None]":
        """Start planning or executing."""
        self.phase = phase
        self.task = asyncio.create_task(self._work(work))
        return self.task

    async def _work(self, work: Awaitable[object]) -> None:
        try:
            await work
            if self.phase == "planning":
                self.phase, self.notice = "planned", ""
            elif self.is_stopping:
                self.phase = "cancelled"
            else:
                self.phase = "stopped" if self.has_bad_canary else "done"
        except WorkerError as error:
            self.phase, self.problem = "failed", str(error)
        except asyncio.CancelledError:
            self.phase = "cancelled"
        except BaseException:
            self.phase, self.problem = "failed", "The console failed: see its standard error."
            raise

    async def close(self) -> None:
        """End the run, and wait until it has ended."""
        if self.task is not None and not self.task.done():
            self.stop()
            if self.phase == "planning":
                self.task.cancel()
            await asyncio.wait({self.task})

    def _tell(self, notice: str) -> None:
        self.notice = notice


class Runs(dict[str, ConsoleRun]):
    """The console's runs by number, newest last."""

    def add(self, run: ConsoleRun) -> None:
        """Keep a run. The oldest ended runs and unstarted plans are dropped. Raises UsageError if too many
        runs are in progress."""
        idle = [each for each in self.values() if not each.is_busy]
        while idle and (
            len(self) >= RUNS_KEPT or sum(each.asked for each in (*self.values(), run)) > LETTERS_KEPT
        ):
            del self[idle.pop(0).number]
        if len(self) >= RUNS_KEPT:
            raise UsageError("Too many plans are being made: try again when they are done.")
        self[run.number] = run

    @property
    def active(self) -> ConsoleRun | None:
        """The run that is being executed."""
        return next((run for run in self.values() if run.phase == "running"), None)
