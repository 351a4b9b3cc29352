"""Filters on dead letters and on records of the journal (contract §8, §11)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.contract.settlement import recorded_id
from worker.contract.timestamps import text_of
from worker.errors import WorkerError

Document = Mapping[str, Any]
"""A dead letter as `list --json` prints it, or a record of the journal."""

# The field of a document that each filter compares.
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
    """Several letters have this request id; `keys` are their letter ids."""

    def __init__(self, request_id: str, keys: frozenset[str]) -> None:
        super().__init__(f"{len(keys)} dead letters have the request id {request_id}: use a letter's own id")
        self.keys = keys


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects the documents that match every filter that is set. A filter with several values matches any of
    them. `id` holds ids of letters or requests. `error` matches a part of the error, in any case. `since` and
    `until` compare when the request was settled (microseconds since the epoch, both inclusive)."""

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
        error = str(document.get("error")).casefold()
        if self.error and not any(text.casefold() in error for text in self.error):
            return False
        if self.since is None and self.until is None:
            return True
        settled_at = document.get("deadAt") or document.get("completedAt")
        # Times of this format sort as text.
        return isinstance(settled_at, str) and (
            (self.since is None or text_of(self.since) <= settled_at)
            and (self.until is None or settled_at <= text_of(self.until))
        )

    def missing(self, letters: Iterable[Document]) -> frozenset[str]:
        """The ids of the filter that match none of these letters."""
        return self.id.difference(*map(_ids, letters))

    def keys(self, letters: Iterable[Document]) -> frozenset[str]:
        """The letter ids of these letters that `id` selects: by letter id, else by request id, if only one of
        the letters has it. Raises AmbiguousId."""
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
