"""Exponential back-off with full jitter."""

import random
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait after consecutive failures: at most `first` after one, twice that after two, and never
    more than `longest`."""

    first: float
    longest: float

    def ceiling(self, failures: int) -> float:
        """The longest wait after this many failures."""
        return min(self.longest, self.first * 2.0 ** min(max(failures - 1, 0), 60))

    def draw(self, failures: int) -> float:
        """A random time up to the ceiling."""
        return random.uniform(0, self.ceiling(failures))  # noqa: S311


RECONNECT: Final = Backoff(0.1, 5.0)  # to RabbitMQ
RECONNECT_SOON: Final = Backoff(0.1, 1.0)  # to RabbitMQ, if requests wait for this connection alone
REPUBLISH: Final = Backoff(0.1, 5.0)  # what a queue of the worker rejected
REFUSED: Final = Backoff(0.1, 2.0)  # what a full requests queue rejected
