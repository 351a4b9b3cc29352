"""Dead letters counted by cause, with advice for each reason."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from worker.contract.timestamps import text_of
from worker.dead_letters.letter import LetterFacts

_ADVICE = {
    "invalid": "The sender must correct them: the error names the field. Or correct and replay them here.",
    "rejected": "Marketing Cloud turned them down: the error says why. Correct and replay them.",
    "exhausted": "Their calls failed while others succeeded: replay one, then the rest.",
    "forbidden": "Grant the scope or the business unit in Marketing Cloud, then replay them.",
    "oversize": "They are larger than OTT_MAX_BODY_BYTES: the sender must send less. Discard them.",
    "delivery_limit": "Redelivered too often, probably because they crash the worker: read its log before "
    "replaying.",
    "expired": "They expired unread: the sender must send them again.",
    "maxlen": "The queue was full: the sender must send them again.",
}


def advice(reason: str) -> str:
    """What to do about letters with this reason, in a sentence or two."""
    return _ADVICE.get(reason, "Look at one of them: ott-worker dead-letters show LETTER.")


@dataclass(slots=True)
class Cause:
    """Letters that died of the same: `count` of them, between `first` and `last` (microseconds since the
    epoch, None where no letter tells). `key` names it in URLs, the same whenever it is made. Where letters
    are grouped by error alone, `platform` and `account` are those of one of them."""

    key: str
    reason: str
    error: str
    platform: str | None = None
    account: str | None = None
    count: int = 0
    first: int | None = None
    last: int | None = None

    def add(self, died_at: int | None) -> None:
        """Count a letter."""
        self.count += 1
        if died_at is not None:
            self.first = died_at if self.first is None else min(self.first, died_at)
            self.last = died_at if self.last is None else max(self.last, died_at)

    def summary(self) -> dict[str, Any]:
        """The object that `list --by error --json` prints."""
        return {
            "reason": self.reason,
            "error": self.error,
            "count": self.count,
            "first": None if self.first is None else text_of(self.first),
            "last": None if self.last is None else text_of(self.last),
        }

    def document(self) -> dict[str, Any]:
        """The cause, as JSON."""
        return {
            "cause": self.key,
            **self.summary(),
            "ottPlatformName": self.platform,
            "accountId": self.account,
        }


def causes_of(letters: Iterable[LetterFacts], *, by_error: bool = False) -> list[Cause]:
    """The causes, the one with the most letters first, else the one that died last. `by_error` makes no
    difference between platforms and accounts."""
    causes: dict[str, Cause] = {}
    for letter in letters:
        key = f"{letter.reason}\0{letter.error}" if by_error else letter.cause
        cause = causes.get(key)
        if cause is None:
            cause = Cause(key, letter.reason, letter.error, letter.platform, letter.account)
            causes[key] = cause
        cause.add(letter.dead_at)
    return sorted(causes.values(), key=lambda cause: (-cause.count, -(cause.last or 0), cause.key))
