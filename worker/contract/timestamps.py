"""Times: microseconds since the epoch in the code, text on the wire (contract §4)."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from worker.errors import UsageError

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SKEW = 600_000_000  # microseconds; tolerated clock skew between broker and workers
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_2100 = 4_102_444_800_000_000  # microseconds since the epoch


def now() -> int:
    """The wall clock, in microseconds since the epoch."""
    return time.time_ns() // 1000


class ArrivalClock:
    """The clock for arrival times. It follows the wall clock, but always increases and stays above its floor,
    so that a later arrival has a later time."""

    def __init__(self, wall_clock: Callable[[], int] = now) -> None:
        self._wall_clock = wall_clock
        self._latest = 0

    def stamp(self) -> int:
        """Microseconds since the epoch."""
        self._latest = max(self._wall_clock(), self._latest + 1)
        return self._latest

    @property
    def latest(self) -> int:
        """The latest time that this worker, or another with the same wall clock, can have stamped by now."""
        return max(self._wall_clock(), self._latest)

    def raise_floor(self, moment: int) -> None:
        """Make all further stamps later than `moment`. A moment beyond this century is ignored: only a forged
        journal record contains one."""
        if moment < YEAR_2100:
            self._latest = max(self._latest, moment)


@lru_cache(maxsize=16)
def text_of(moment: int) -> str:
    """``2026-11-23T12:00:00.123456Z``, from microseconds since the epoch."""
    seconds, fraction = divmod(moment, 1_000_000)
    return f"{_to_the_second(seconds)}.{fraction:06d}Z"


def microseconds(text: str) -> int | None:
    """Microseconds since the epoch of an ISO 8601 time with an offset; None for any other text."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None
        # With the offset, the time can be outside the supported years.
        return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None


def how_long(since: datetime, until: datetime) -> str:
    """The duration between two times, as `span` writes it."""
    return span(max(0.0, (until - since).total_seconds()))


def span(seconds: float) -> str:
    """A duration as text: `12 s`, `3 min`, `5 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def moment(
    text: str | None, option: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> int | None:
    """Microseconds since the epoch of `2026-11-23T12:00:00Z` (UTC if it has no offset), of a date, or of a
    time ago: `90s`, `15m`, `2h`, `3d`, `1w`. Raises UsageError."""
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
    return (parsed - _EPOCH) // timedelta(microseconds=1)


@lru_cache(maxsize=100)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
