"""Filters on dead letters and on records of the journal (contract §8, §11)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.contract.settlement import recorded_id
from worker.contract.timestamps import text_of
from worker.errors import WorkerError

Document = Mapping[str, Any]
"""What `list --json` prints of a dead letter, or a record of the journal."""

# The field of a document that each filter is about.
FIELDS: Final = {
    "reason": "reason",
    "status": "status",
    "platform": "ottPlatformName",
    "resource": "resourceId",
    "account": "accountId",
    "user": "userId",
    "cause": "cause",
}


class AmbiguousId(WorkerError):
    """A request's id that several letters bear; `keys` are their own ids."""

    def __init__(self, request_id: str, keys: frozenset[str]) -> None:
        super().__init__(f"{len(keys)} dead letters bear the request id {request_id}: name one by its own id")
        self.keys = keys


@dataclass(frozen=True, slots=True)
class Selection:
    """Documents that match every filter given; of several values of one filter, one has to match. `id` are
    ids of letters or of requests. An error matches that contains one of `error`, in any case. `since` and
    `until` are about when the request was settled (microseconds since the epoch, both included)."""

    id: frozenset[str] = frozenset()
    reason: frozenset[str] = frozenset()
    status: frozenset[str] = frozenset()
    platform: frozenset[str] = frozenset()
    resource: frozenset[str] = frozenset()
    account: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()
    cause: frozenset[str] = frozenset()
    error: frozenset[str] = frozenset()
    since: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        for name in ("id", "resource"):
            object.__setattr__(self, name, frozenset(map(recorded_id, getattr(self, name))))

    @property
    def is_everything(self) -> bool:
        return self == Selection()

    def __contains__(self, document: Document) -> bool:
        for option, name in FIELDS.items():
            wanted = getattr(self, option)
            if wanted and document.get(name) not in wanted:
                return False
        if self.id and self.id.isdisjoint(_ids(document)):
            return False
        told = str(document.get("error")).casefold()
        if self.error and not any(text.casefold() in told for text in self.error):
            return False
        if self.since is None and self.until is None:
            return True
        settled_at = document.get("deadAt") or document.get("completedAt")
        # Texts of one shape are in the order of their times.
        return isinstance(settled_at, str) and (
            (self.since is None or text_of(self.since) <= settled_at)
            and (self.until is None or settled_at <= text_of(self.until))
        )

    def missing(self, letters: Iterable[Document]) -> frozenset[str]:
        """The ids that name none of these."""
        return self.id.difference(*map(_ids, letters))

    def keys(self, letters: Iterable[Document]) -> frozenset[str]:
        """The own ids of those of the matching letters that `id` names: by a letter's id, else by the id of
        its request, if no other letter bears that. Raises AmbiguousId."""
        letters = list(letters)
        own = frozenset(each["letter"] for each in letters)
        if not self.id:
            return own
        bearers: dict[str, set[str]] = {}
        for each in letters:
            if each["letter"] not in self.id:
                bearers.setdefault(each["id"], set()).add(each["letter"])
        keys = self.id & own
        for request_id in self.id - own:
            found = frozenset(bearers.get(request_id, ()))
            if len(found) > 1:
                raise AmbiguousId(request_id, found)
            keys |= found
        return keys


def _ids(document: Document) -> tuple[Any, Any]:
    return document.get("letter"), document.get("id")
