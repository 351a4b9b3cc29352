"""What stands in a job's way at the moment, for the one who waits."""

from collections.abc import Iterable

from worker.broker.situation import obstacle
from worker.contract.status import WorkerStatus
from worker.events import EventListener


class Notices(EventListener):
    """Hears what the broker modules state. `current` is empty while all goes well."""

    def __init__(self) -> None:
        self._broker = ""
        self._workers = ""
        self.job = ""

    @property
    def current(self) -> str:
        # A paused worker consumes nothing: that no worker takes requests is true then, and not the cause.
        return self._broker or self._workers or self.job

    def workers_told(self, workers: Iterable[WorkerStatus]) -> None:
        """What the workers say of themselves."""
        self._workers = obstacle(workers)

    def subscribed(self, prefetch: int) -> None:
        self._broker = ""

    def broker_unreachable(self, why: str) -> None:
        self._broker = _trying(why)


def _trying(why: str) -> str:
    return f"{why[:1].upper()}{why[1:].rstrip('.')}; trying again."
