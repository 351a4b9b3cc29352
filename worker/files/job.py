"""What a job is to do, and how it stands, in constant memory."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from worker.events import EventListener
from worker.files.job_database import SETTLED, RowResult
from worker.files.rows import Group, Reading

MOST_ERRORS: Final = 200  # different texts that are counted apart
OTHER: Final = "(other errors)"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job does. `outstanding` rows at most wait for their replies, or as many as are settled soon;
    `rate` is the most rows a second. Without `wait` it follows no replies.

    `results` and `failed` are where results and failed rows go. With `resumed` it is the same job again: rows
    keep their request ids, and replies that came after the earlier run had ended are taken in.
    """

    reading: Reading
    account_id: str | None = None
    outstanding: int | None = None
    rate: float | None = None
    wait: bool = True
    send_damaged: bool = False
    results: Path | None = None
    failed: Path | None = None
    resumed: bool = False


@dataclass(slots=True)
class Tally:
    """Rows by what became of them. `total` is None while it is not known, `published` are those that the
    broker has confirmed. A row with several errors is counted with each. `overtaken` are those that something
    newer outside the job has superseded."""

    read: int = 0
    total: int | None = None
    skipped: int = 0
    published: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    overtaken: Group = field(default_factory=Group)

    @property
    def answered(self) -> int:
        return self.statuses.total()

    @property
    def all_well(self) -> bool:
        """Whether nothing is left to do: what something newer has superseded needs nothing."""
        return self.answered == sum(self.statuses[status] for status in SETTLED)

    def add(self, result: RowResult, place: str) -> None:
        """Count an answer."""
        self.statuses[result.status] += 1
        if result.status != "registered":
            for error in result.errors or ("(no message)",):
                is_known = (result.status, error) in self.groups or len(self.groups) < MOST_ERRORS
                key = (result.status, error if is_known else OTHER)
                self.groups.setdefault(key, Group()).add(place)

    def errors(self) -> list[tuple[str, str, Group]]:
        """Status and error of each group, the largest first."""
        groups = sorted(self.groups.items(), key=lambda item: -item[1].count)
        return [(status, error, group) for (status, error), group in groups]


class Notices(EventListener):
    """Why nothing comes back: a fault of the connection, what the workers say of themselves, or how the job
    stands. Empty while all goes well."""

    def __init__(self) -> None:
        self.broker = self.workers = self.job = ""

    @property
    def current(self) -> str:
        """The one to show."""
        # A paused worker consumes nothing: that no worker takes requests is true then, and not the cause.
        return self.broker or self.workers or self.job

    def subscribed(self, queue: str, prefetch: int) -> None:
        self.broker = ""

    def broker_unreachable(self, why: str) -> None:
        self.broker = f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."
