"""What a replay would do, found out by looking alone."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from worker.broker.journal_reader import open_journal
from worker.broker.sealing import why_closed
from worker.dead_letters.box import DeadLetterBox
from worker.dead_letters.letter import Letter, open_body
from worker.dead_letters.mend import Mend, Unfit
from worker.dead_letters.selection import Selection
from worker.errors import TopologyError, UsageError
from worker.pipeline.history import read_into
from worker.pipeline.newest import Newest
from worker.pipeline.request import Resource
from worker.settings import Settings

Fate = Literal["replayed", "superseded", "unproven", "unfit", "discarded"]


@dataclass(slots=True)
class Plan:
    """`total` letters lie there and `matching` of them match. Of these, `unfit` are refused after mending,
    and `unproven` could overwrite something newer, for all that the journal tells."""

    total: int = 0
    matching: int = 0
    unfit: int = 0
    superseded: int = 0
    unproven: int = 0

    def add(self, fate: Fate) -> None:
        """Count a matching letter."""
        self.matching += 1
        self.unfit += fate == "unfit"
        self.superseded += fate == "superseded"
        self.unproven += fate == "unproven"


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a replay of one letter would come to, and why, or by which newer request."""

    letter: Letter
    fate: Fate
    why: str = ""


class Planner:
    """Looks at letters, and at the journal, before anything is published."""

    def __init__(self, settings: Settings, selection: Selection, mend: Mend, *, force: bool) -> None:
        self._settings = settings
        self._selection = selection
        self._mend = mend
        self._force = force
        if not settings.journal and not force:
            raise UsageError(
                "Without a journal (OTT_JOURNAL=false) nobody knows whether a replay would overwrite "
                "a newer registration: give --force to replay all the same"
            )

    async def make(self, box: DeadLetterBox, tell: Callable[[Prospect], None]) -> Plan:
        """Look at all letters and `tell` what each matching one would come to."""
        plan = Plan(total=await box.depth())
        newest = None if self._force else await self._read_journal(box)
        async with contextlib.aclosing(box.look(self._selection)) as letters:
            async for letter in letters:
                prospect = self._prospect(letter, newest)
                plan.add(prospect.fate)
                tell(prospect)
        return plan

    def _prospect(self, letter: Letter, newest: Newest | None) -> Prospect:
        resource = letter.resource
        if closed := why_closed(letter.delivery.body):
            return Prospect(letter, "unfit", closed)
        if self._mend:
            mended = self._mend.apply(open_body(letter.delivery), self._settings.max_body_bytes)
            if isinstance(mended, Unfit):
                return Prospect(letter, "unfit", str(mended))
            resource = Resource(letter.account, mended.platform, mended.resource_id)
        if newest is None or resource is None:
            # Without a resource it overwrites nothing: the worker will reject it again.
            return Prospect(letter, "replayed")
        newer = newest.newer_than(resource, letter.received_after)
        if newer is not None:
            return Prospect(letter, "superseded", newer)
        if not newest.reaches_back_to(letter.id, resource, letter.received_after):
            return Prospect(letter, "unproven")
        return Prospect(letter, "replayed")

    async def _read_journal(self, box: DeadLetterBox) -> Newest | None:
        """The journal from the oldest letter on; of a journal that is not there, nothing is known."""
        oldest = await self._oldest(box)
        if oldest is None:
            return None
        newest = Newest(since=oldest)
        with contextlib.suppress(TopologyError):
            async with open_journal(self._settings) as reader:
                await read_into(newest, reader, await reader.first())
        return newest

    async def _oldest(self, box: DeadLetterBox) -> int | None:
        oldest = None
        async with contextlib.aclosing(box.look(self._selection)) as letters:
            async for letter in letters:
                oldest = letter.received_after if oldest is None else min(oldest, letter.received_after)
        return oldest
