"""One log line a minute while requests are settled, instead of one for each request."""

import asyncio
from collections import Counter

from worker.contract.dead_letter import brief, error_text
from worker.contract.settlement import Settlement
from worker.events import EventListener
from worker.telemetry.log import Logger

INTERVAL = 60.0  # seconds
EXAMPLE_LENGTH = 200  # characters


class Summary(EventListener):
    """Counts settled requests, and logs the counts a minute after the first one: by status, by reason, and
    with one example of each reason. A minute without requests has no line."""

    def __init__(self, logger: Logger, interval: float = INTERVAL) -> None:
        self._log = logger
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None
        self._clear()

    def settled(self, settlement: Settlement, seconds: float) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(self._interval, self.tell)
        self._statuses[settlement.status] += 1
        self._retried += settlement.attempts > 1
        if settlement.reason is not None:
            self._reasons[settlement.reason] += 1
            if settlement.reason not in self._examples:
                self._examples[settlement.reason] = _example(settlement)

    def tell(self) -> None:
        """Log the counts that have not been logged yet."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self._log.info(
            "requests settled",
            seconds=round(asyncio.get_running_loop().time() - self._since, 1),
            registered=self._statuses["registered"],
            rejected=self._statuses["rejected"],
            failed=self._statuses["failed"],
            superseded=self._statuses["superseded"],
            retried=self._retried,
            reasons=dict(self._reasons),
            examples=self._examples,
        )
        self._clear()

    def _clear(self) -> None:
        self._since = 0.0
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._retried = 0
        self._examples: dict[str, str] = {}


def _example(settlement: Settlement) -> str:
    return brief(error_text(settlement))[:EXAMPLE_LENGTH]
