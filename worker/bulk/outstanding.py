"""The rows that are published and not answered: never more than a job may have out."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from worker.bulk.readers import Row

UNCONFIRMED_BYTES: Final = 16 * 1024 * 1024  # published, and held until the broker has them


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that is out: its number, where it stands, and the row as it came if somebody may want it back."""

    number: int
    file: str
    line: int
    row: Row | None = None


class Outstanding:
    """Rows by their request id. One task at a time may wait."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: dict[str, Sent] = {}
        self._unconfirmed = 0
        self._changed = asyncio.Event()
        self._moved_at = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        """`3 rows (between 17 and 25)`."""
        rows = [sent.number for sent in self._rows.values()]
        if len(rows) == 1:
            return f"row {min(rows)}"
        return f"{len(rows):,} rows (between {min(rows)} and {max(rows)})" if rows else "no row"

    @property
    def idle(self) -> float:
        """Seconds since something last moved, while rows are out."""
        return asyncio.get_running_loop().time() - self._moved_at if self._rows else 0.0

    def add(self, request_id: str, sent: Sent, size: int) -> None:
        """A row goes out; its body has `size` bytes."""
        if not self._rows:
            self._moved()
        self._rows[request_id] = sent
        self._unconfirmed += size

    def confirmed(self, size: int) -> None:
        """The broker has a row, or it was given up."""
        self._unconfirmed -= size
        self._moved()

    def answered(self, request_id: str) -> Sent | None:
        """A row has come back; None if it was not out."""
        self._moved()
        return self._rows.pop(request_id, None)

    def rows(self) -> Iterable[Sent]:
        """The rows that have been sent and not answered."""
        return self._rows.values()

    async def room(self) -> None:
        """Wait until one more row may go out."""
        await self.until(lambda: len(self._rows) < self._limit and self._unconfirmed < UNCONFIRMED_BYTES)

    async def none(self) -> None:
        """Wait until no row is out."""
        await self.until(lambda: not self._rows)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that rows going and coming bring about."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _moved(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()
        self._changed.set()
