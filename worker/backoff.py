"""How long to wait before the next try: one function for everything that tries again."""

import random


def backoff(failures: int, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row, exponential with full jitter: a random time up to
    `ceiling`."""
    return random.uniform(0, ceiling(failures, first, longest))  # noqa: S311


def ceiling(failures: int, first: float, longest: float) -> float:
    """The most that `backoff` waits: `first` after one failure, twice that after two, at most `longest`."""
    return min(longest, first * 2.0 ** min(max(failures - 1, 0), 60))
