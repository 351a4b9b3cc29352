"""What tests of Marketing Cloud's answers share."""

from worker.events import EventListener
from worker.sandbox.faults import Status


def failing(status: int, **more) -> Status:
    """A fault of the registration endpoint."""
    return Status(path="registration", status=status, **more)


class GateEvents(EventListener):
    """Remembers why the gate closed, and how often it opened."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.opened = 0

    def gate_closed(self, why: str) -> None:
        self.closed.append(why)

    def gate_opened(self, seconds: float) -> None:
        self.opened += 1
