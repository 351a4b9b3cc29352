"""What the pages are made of, and what it costs to keep it new."""

import time

from aiohttp import web

from worker.broker.overview import Overview
from worker.console.journal_search import JournalSearch
from worker.console.kept import Kept, refreshed
from worker.console.last_hour import LastHour
from worker.console.letters import LetterCopy
from worker.console.overview_reader import OverviewReader
from worker.console.rendering import wants_json
from worker.console.run import Runs
from worker.settings import Settings

PAINT = 0.15  # seconds that a page waits for what is being read; the rest comes with the next refresh
FIRST_PAINT = 1.5  # seconds that it waits for the broker's state where what it has is old
ANSWER = 30.0  # seconds that a script waits, which asks once
STATE_LIFE = 1.0  # seconds


class Sources:
    """The broker's state, the dead letters, the journal, and the runs of this console."""

    def __init__(self, settings: Settings) -> None:
        self._reader = OverviewReader(settings)
        self.settings = settings
        self.state = Kept(self._reader.read, Overview(), STATE_LIFE)
        self.letters = LetterCopy(settings)
        self.last_hour = LastHour(settings)
        self.journal = JournalSearch(settings)
        self.runs = Runs()

    async def look(self, request: web.Request) -> None:
        """Make the broker's state and the copy of the letters as new as they should be; a browser is shown
        what is there in time."""
        until = time.monotonic() + (ANSWER if wants_json(request) else PAINT)
        first = (
            until - time.monotonic()
            if self.state.is_fresh
            else ANSWER
            if wants_json(request)
            else FIRST_PAINT
        )
        await refreshed(first, self.state)
        self.letters.depth_is(self.state.value.queues.get("dead"))
        await refreshed(until - time.monotonic(), self.letters.rows)

    def expire(self) -> None:
        """Something was changed: read the broker's state and the letters anew at the next look."""
        self.state.expire()
        self.letters.rows.expire()

    async def close(self) -> None:
        """End what is under way."""
        await self.runs.close()
        await self.state.close()
        await self.letters.rows.close()
        await self.last_hour.close()
        await self.journal.close()
        await self._reader.close()
