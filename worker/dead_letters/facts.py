"""What lists tell of dead letters; which of them are selected; and the causes that they have in common."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from worker.contract.timestamps import text_of
from worker.errors import WorkerError

NAMED = 20  # letters that are named one by one


@dataclass(frozen=True, slots=True)
class LetterFacts:
    """What lists tell of a dead letter (contract §8). `key` is its own id, `id` its request's, which is the
    publisher's and may stand in many letters. `reason` is one of contract §5 or the broker's own
    (`delivery_limit`, `expired`). `received_at` and `dead_at` are microseconds since the epoch, None where
    nothing tells them."""

    key: str
    id: str
    user: str | None
    reason: str
    error: str
    attempts: int
    http_status: int | None
    account: str | None
    platform: str | None
    resource_id: str | None
    received_at: int | None
    dead_at: int | None
    replays: int

    @property
    def cause(self) -> str:
        """The key of what it died of, on which platform and account."""
        return _cause_key(self.reason, self.error, self.platform, self.account)

    def document(self) -> dict[str, Any]:
        """What `list --json` prints."""
        return {
            "letter": self.key,
            "id": self.id,
            "reason": self.reason,
            "error": self.error,
            "httpStatus": self.http_status,
            "attempts": self.attempts,
            "accountId": self.account,
            "userId": self.user,
            "ottPlatformName": self.platform,
            "resourceId": self.resource_id,
            "receivedAt": _time(self.received_at),
            "deadAt": _time(self.dead_at),
            "replays": self.replays,
        }


@lru_cache(maxsize=1000)
def _cause_key(*words: str | None) -> str:
    text = "\x00".join(word or "" for word in words)
    return blake2b(text.encode(), digest_size=6).hexdigest()


def _time(moment: int | None) -> str | None:
    return None if moment is None else text_of(moment)


def few(names: Iterable[str]) -> str:
    """Some of the names, and how many there are besides."""
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


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

    def __contains__(self, letter: LetterFacts) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.platforms or letter.platform in self.platforms)
            and (not self.resources or letter.resource_id in self.resources)
            and (not self.accounts or letter.account in self.accounts)
            and (not self.users or letter.user in self.users)
            and (not self.errors or any(text.casefold() in letter.error.casefold() for text in self.errors))
            and (not self.causes or letter.cause in self.causes)
            and (not self.ids or letter.key in self.ids or letter.id in self.ids)
            and self._is_in_time(letter.dead_at)
        )

    def _is_in_time(self, moment: int | None) -> bool:
        if moment is None:
            return self.since is None and self.until is None
        return (self.since is None or moment >= self.since) and (self.until is None or moment <= self.until)

    def missing(self, letters: Iterable[Named]) -> frozenset[str]:
        """The ids that name none of these."""
        return self.ids - {name for letter in letters for name in (letter.key, letter.id)}

    def named(self, letters: Iterable[AnyNamed]) -> list[AnyNamed]:
        """Those of the matching letters that `ids` name: by a letter's id, else by the id of its request, if
        no other letter bears that. Raises AmbiguousId."""
        letters = list(letters)
        if not self.ids:
            return letters
        keys = {letter.key for letter in letters}
        by_request: dict[str, set[str]] = {}
        for letter in letters:
            if letter.key not in self.ids:
                by_request.setdefault(letter.id, set()).add(letter.key)
        for request_id, bearers in by_request.items():
            if request_id not in keys and len(bearers) > 1:
                raise AmbiguousId(request_id, len(bearers))
        return [letter for letter in letters if letter.key in self.ids or letter.id not in keys]


@dataclass(frozen=True, slots=True)
class Cause:
    """Letters that died of the same: `count` of them, between `first` and `last` (microseconds since the
    epoch, None where no letter tells). `key` names it in URLs, the same whenever it is made. Where letters
    are grouped by error alone, `platform` and `account` are those of one of them."""

    key: str
    reason: str
    error: str
    platform: str | None
    account: str | None
    count: int
    first: int | None
    last: int | None

    def summary(self) -> dict[str, Any]:
        """The object that `list --by error --json` prints."""
        return {
            "reason": self.reason,
            "error": self.error,
            "count": self.count,
            "first": _time(self.first),
            "last": _time(self.last),
        }

    def document(self) -> dict[str, Any]:
        """The cause, as JSON."""
        more = {"cause": self.key, "ottPlatformName": self.platform, "accountId": self.account}
        return self.summary() | more


def causes_of(letters: Iterable[LetterFacts], *, by_error: bool = False) -> list[Cause]:
    """The causes, the one with the most letters first, else the one that died last. `by_error` makes no
    difference between platforms and accounts."""
    groups: dict[str, list[LetterFacts]] = {}
    for letter in letters:
        key = f"{letter.reason}\0{letter.error}" if by_error else letter.cause
        groups.setdefault(key, []).append(letter)
    causes = []
    for key, of_one in groups.items():
        one, died = of_one[0], [letter.dead_at for letter in of_one if letter.dead_at is not None]
        first, last = min(died, default=None), max(died, default=None)
        cause = Cause(key, one.reason, one.error, one.platform, one.account, len(of_one), first, last)
        causes.append(cause)
    return sorted(causes, key=lambda cause: (-cause.count, -(cause.last or 0), cause.key))
