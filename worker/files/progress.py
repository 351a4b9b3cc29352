"""Progress of a job, in constant memory: rows by outcome, and what delays it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from worker.broker.situation import obstacle
from worker.contract.status import WorkerStatus
from worker.events import EventListener
from worker.files.results import RowResult

FIRST_ROWS: Final = 5
MOST_ERRORS: Final = 200  # different texts that are counted apart
OTHER: Final = "(other errors)"


@dataclass(slots=True)
class ErrorGroup:
    """Rows with one error, and the places of the first ones. A row with several errors is in several
    groups."""

    status: str
    error: str
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.first) < FIRST_ROWS:
            self.first.append(place)

    @property
    def places(self) -> str:
        return ", ".join(self.first) + (" …" if self.count > FIRST_ROWS else "")


@dataclass(slots=True)
class Tally:
    """Rows by what became of them. `published` are those that the broker has confirmed. `overtaken` are those
    that something newer outside the job has superseded."""

    read: int = 0
    read_bytes: int = 0
    total: int | None = None
    skipped: int = 0
    published: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], ErrorGroup] = field(default_factory=dict)
    overtaken: ErrorGroup = field(default_factory=lambda: ErrorGroup("superseded", ""))

    @property
    def answered(self) -> int:
        return self.statuses.total()

    @property
    def all_well(self) -> bool:
        """Whether nothing is left to do: what something newer has superseded needs nothing."""
        return self.answered == self.statuses["registered"] + self.statuses["superseded"]

    def add(self, result: RowResult, place: str) -> None:
        """Count an answer."""
        self.statuses[result.status] += 1
        if result.status != "registered":
            for error in result.errors or ("(no message)",):
                if (result.status, error) not in self.groups and len(self.groups) >= MOST_ERRORS:
                    error = OTHER  # noqa: PLW2901 (one too many)
                group = ErrorGroup(result.status, error)
                self.groups.setdefault((result.status, error), group).add(place)

    def errors(self) -> list[ErrorGroup]:
        """The groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: -group.count)


class Notices(EventListener):
    """Hears what the broker modules state. `current` is empty while all goes well."""

    def __init__(self) -> None:
        self._broker = ""
        self._workers = ""
        self.job = ""

    @property
    def current(self) -> str:
        # A paused worker consumes nothing: that no worker takes requests is true then, and not the cause.
        return self._broker or self._workers or self.job

    def workers_told(self, workers: Iterable[WorkerStatus]) -> None:
        """What the workers say of themselves."""
        self._workers = obstacle(workers)

    def subscribed(self, prefetch: int) -> None:
        self._broker = ""

    def broker_unreachable(self, why: str) -> None:
        self._broker = f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."
