"""Exponential back-off with full jitter, and the waits that are named."""

import random
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds to wait after failures in a row: `first` at most after one, twice as much after two, never more
    than `longest`."""

    first: float
    longest: float

    def ceiling(self, failures: int) -> float:
        """The most that is waited after so many failures."""
        return min(self.longest, self.first * 2.0 ** min(max(failures - 1, 0), 60))

    def draw(self, failures: int) -> float:
        """A random time up to the ceiling."""
        return random.uniform(0, self.ceiling(failures))  # noqa: S311


RECONNECT: Final = Backoff(0.1, 5.0)  # to RabbitMQ
RECONNECT_SOON: Final = Backoff(0.1, 1.0)  # where requests wait for nothing else
REPUBLISH: Final = Backoff(0.1, 5.0)  # to our own queues, what they turned down
REFUSED: Final = Backoff(0.1, 2.0)  # what a full requests queue turned down, by its publisher
