"""The selection of dead letters that a command or a page works on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from worker.errors import WorkerError

if TYPE_CHECKING:
    from worker.dead_letters.letter import LetterFacts


class Named(Protocol):
    """The ids of a letter and of its request."""

    @property
    def key(self) -> str: ...
    @property
    def id(self) -> str: ...


AnyNamed = TypeVar("AnyNamed", bound=Named)


class AmbiguousId(WorkerError):
    """A request's id that several letters bear."""

    def __init__(self, request_id: str, count: int) -> None:
        super().__init__(f"{count} dead letters bear the request id {request_id}: name one by its own id")
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Selection:
    """Letters that match every filter given; of several values of one filter, one has to match. `ids` are of
    letters or of requests. An error matches that contains one of `errors`, in any case. `since` and `until`
    are about when the letter died (microseconds since the epoch, both included)."""

    reasons: frozenset[str] = frozenset()
    platforms: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    causes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    since: int | None = None
    until: int | None = None

    @property
    def is_everything(self) -> bool:
        return self == Selection()

    def __contains__(self, letter: "LetterFacts") -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.platforms or letter.platform in self.platforms)
            and (not self.resources or letter.resource_id in self.resources)
            and (not self.accounts or letter.account in self.accounts)
            and (not self.users or letter.user in self.users)
            and (not self.errors or self._is_error(letter.error.casefold()))
            and (not self.causes or letter.cause in self.causes)
            and (not self.ids or letter.key in self.ids or letter.id in self.ids)
            and self._is_in_time(letter.dead_at)
        )

    def _is_error(self, error: str) -> bool:
        return any(text.casefold() in error for text in self.errors)

    def _is_in_time(self, moment: int | None) -> bool:
        if self.since is None and self.until is None:
            return True
        return (
            moment is not None
            and (self.since is None or moment >= self.since)
            and (self.until is None or moment <= self.until)
        )

    def named(self, letters: Iterable[AnyNamed]) -> list[AnyNamed]:
        """Those of the matching letters that `ids` name: by a letter's id, else by the id of its request, if
        no other letter bears that. Raises AmbiguousId."""
        letters = list(letters)
        if not self.ids:
            return letters
        keys = {letter.key for letter in letters}
        by_request: dict[str, list[AnyNamed]] = {}
        for letter in letters:
            if letter.key not in self.ids:
                by_request.setdefault(letter.id, []).append(letter)
        for request_id, bearers in by_request.items():
            if request_id not in keys and len({each.key for each in bearers}) > 1:
                raise AmbiguousId(request_id, len(bearers))
        return [letter for letter in letters if letter.key in self.ids or letter.id not in keys]
