"""Dead letters counted by cause."""

from dataclasses import dataclass
from typing import Any

from worker.contract.timestamps import text_of
from worker.dead_letters.letter import Letter


@dataclass(slots=True)
class LetterGroup:
    """Letters of one reason and error. `first` and `last` are when they died, in microseconds since the
    epoch, None where no letter tells."""

    reason: str
    error: str
    count: int = 0
    first: int | None = None
    last: int | None = None

    def add(self, letter: Letter) -> None:
        """Count a letter."""
        self.count += 1
        if letter.dead_at is not None:
            self.first = letter.dead_at if self.first is None else min(self.first, letter.dead_at)
            self.last = letter.dead_at if self.last is None else max(self.last, letter.dead_at)

    def summary(self) -> dict[str, Any]:
        """The object that `list --by error --json` prints."""
        return {
            "reason": self.reason,
            "error": self.error,
            "count": self.count,
            "first": None if self.first is None else text_of(self.first),
            "last": None if self.last is None else text_of(self.last),
        }


class Groups:
    """Groups by reason and error."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], LetterGroup] = {}

    def add(self, letter: Letter) -> None:
        """Count a letter in its group."""
        key = (letter.reason, letter.error)
        self._groups.setdefault(key, LetterGroup(*key)).add(letter)

    def largest_first(self) -> list[LetterGroup]:
        """All groups; of the same size, the one that died last comes first."""
        return sorted(self._groups.values(), key=lambda group: (-group.count, -(group.last or 0)))
