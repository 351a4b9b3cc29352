"""Values that are read again only while somebody looks at them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from worker.errors import WorkerError

T = TypeVar("T")
FRESH = timedelta(seconds=5)  # the age up to which what is shown is called the present


class Kept(Generic[T]):
    """The last value that `read` gave. Those who look at the same time share one reading. `life` is how many
    seconds a value stays good; `trouble` is why the last reading failed, empty where it did not."""

    def __init__(self, read: Callable[[], Awaitable[T]], initial: T, life: float) -> None:
        self._read = read
        self._task: asyncio.Task[None] | None = None
        self._ended_at = float("-inf")
        self.value = initial
        self.life = life
        self.as_of: datetime | None = None
        self.trouble = ""

    @property
    def is_fresh(self) -> bool:
        """Whether the value is that of the last seconds."""
        return not self.trouble and self.as_of is not None and datetime.now(UTC) - self.as_of <= FRESH

    @property
    def is_reading(self) -> bool:
        """Whether a reading is under way."""
        return self._task is not None

    def refresh(self) -> "asyncio.Task[None] | None":
        """The reading under way, a new one where the value is too old, or None where it is good."""
        if self._task is None and time.monotonic() - self._ended_at >= self.life:
            self._task = asyncio.create_task(self._reading())
        return self._task

    def expire(self) -> None:
        """Read anew at the next look."""
        self._ended_at = float("-inf")

    async def close(self) -> None:
        """End a reading that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _reading(self) -> None:
        try:
            self.value = await self._read()
            self.as_of, self.trouble = datetime.now(UTC), ""
        except WorkerError as error:
            self.trouble = str(error)
        finally:
            self._task = None
            self._ended_at = time.monotonic()


async def refreshed(timeout: float, *kept: Kept[Any]) -> None:
    """Wait until these are as new as they should be, or for `timeout` seconds."""
    tasks = {task for each in kept if (task := each.refresh()) is not None}
    if tasks:
        await asyncio.wait(tasks, timeout=max(0, timeout))
