"""The selection of dead letters that a command works on."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.dead_letters.letter import Letter
from worker.errors import UsageError

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Selection:
    """Letters that match every filter given; of several values of one filter, one has to match. `since`
    and `until` are about when the letter died (microseconds since the epoch, both included)."""

    reasons: frozenset[str] = frozenset()
    platforms: frozenset[str] = frozenset()
    resources: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    since: int | None = None
    until: int | None = None

    @property
    def is_everything(self) -> bool:
        return self == Selection()

    def __contains__(self, letter: Letter) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.platforms or letter.platform in self.platforms)
            and (not self.resources or letter.resource_id in self.resources)
            and (not self.ids or letter.key in self.ids or letter.id in self.ids)
            and self._in_time(letter.dead_at)
        )

    def _in_time(self, moment: int | None) -> bool:
        if self.since is None and self.until is None:
            return True
        return (
            moment is not None
            and (self.since is None or moment >= self.since)
            and (self.until is None or moment <= self.until)
        )


def moment(
    text: str | None, option: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> int | None:
    """Microseconds since the epoch of `2026-11-23T12:00:00Z` (UTC where no zone is named), of a date,
    or of a while ago: `90s`, `15m`, `2h`, `3d`, `1w`. Raises UsageError."""
    if text is None:
        return None
    try:
        if relative := _RELATIVE.fullmatch(text.strip()):
            ago = float(relative[1]) * _UNIT[relative[2]]
            return max(0, int((now().timestamp() - ago) * 1_000_000))
        parsed = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise UsageError(f"{option} must be a time such as 2026-11-23T12:00:00Z, or 2h, 3d") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp() * 1_000_000)
