"""The chart of the last hour, as numbers that an SVG template draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 600, 100
STACK = ("registered", "superseded", "rejected", "failed")  # from the bottom up
LEAST_HEIGHT = 1.5  # one failure among thousands must be seen


@dataclass(frozen=True, slots=True)
class Part:
    """One status of a minute, as a rectangle."""

    status: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One minute. `title` says it in words."""

    x: float
    title: str
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Chart:
    """`summary` is what a screen reader says; `top` is the number at the upper edge."""

    bars: list[Bar]
    bar_width: float
    top: int
    totals: Mapping[str, int]
    summary: str


def chart_of(minutes: Sequence[tuple[datetime, Mapping[str, int]]]) -> Chart:
    """The chart of these minutes, the oldest first."""
    top = _round_up(max((sum(counts.values()) for _, counts in minutes), default=0))
    step = WIDTH / max(1, len(minutes))
    bars = [
        Bar(round(number * step, 2), _title(at, counts), _parts(counts, top))
        for number, (at, counts) in enumerate(minutes)
        if sum(counts.values())
    ]
    totals = {status: sum(counts.get(status, 0) for _, counts in minutes) for status in STACK}
    words = ", ".join(f"{totals[status]} {status}" for status in STACK)
    summary = f"Requests of the last {len(minutes)} minutes: {words}; at most {top} a minute"
    return Chart(bars, round(step * 0.8, 2), top, totals, summary)


def _parts(counts: Mapping[str, int], top: int) -> list[Part]:
    parts, y = [], float(HEIGHT)
    for status in STACK:
        if count := counts.get(status, 0):
            height = max(LEAST_HEIGHT, count / top * HEIGHT)
            y -= height
            parts.append(Part(status, round(y, 2), round(height, 2)))
    return parts


def _title(at: datetime, counts: Mapping[str, int]) -> str:
    words = ", ".join(f"{counts[status]} {status}" for status in STACK if counts.get(status))
    return f"{at:%H:%M} UTC: {words}"


def _round_up(number: int) -> int:
    """To a number that people like at an axis."""
    unit = 1
    while unit * 10 < number:
        unit *= 10
    return next((unit * step for step in (1, 2, 5, 10) if unit * step >= number), number) if number else 10
