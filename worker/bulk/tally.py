"""Counts of the results so far. They take the same memory however many rows there are."""

from collections import Counter
from dataclasses import dataclass, field

from worker.bulk.results import RowResult

FIRST_ROWS = 5
MOST_ERRORS = 200  # different texts that are counted apart
OTHER = "(other errors)"


@dataclass(slots=True)
class ErrorGroup:
    """Rows with one error. A row with several errors is in several groups."""

    status: str
    error: str
    count: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.first_rows) < FIRST_ROWS:
            self.first_rows.append(row)


@dataclass(slots=True)
class Tally:
    """Rows by what became of them. `published` are those that the broker has confirmed."""

    read: int = 0
    read_bytes: int = 0
    total: int | None = None
    skipped: int = 0
    published: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], ErrorGroup] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        return self.statuses.total()

    @property
    def registered(self) -> int:
        return self.statuses["registered"]

    @property
    def all_well(self) -> bool:
        """Whether nothing is left to do: what a later row has superseded needs nothing."""
        return self.answered == self.registered + self.statuses["superseded"]

    def add(self, result: RowResult) -> None:
        """Count an answer."""
        self.statuses[result.status] += 1
        if result.status != "registered":
            for error in result.errors or ("(no message)",):
                self._group(result.status, error).add(result.row)

    def errors(self) -> list[ErrorGroup]:
        """The groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: -group.count)

    def _group(self, status: str, error: str) -> ErrorGroup:
        if (status, error) not in self.groups and len(self.groups) >= MOST_ERRORS:
            error = OTHER
        return self.groups.setdefault((status, error), ErrorGroup(status, error))
