"""What a replay would do. Planning publishes nothing and removes nothing."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from worker.broker.journal import open_journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.registration import Rejection, parse_registration
from worker.contract.resource import Resource
from worker.dead_letters.box import DeadLetterBox
from worker.dead_letters.letter import Letter
from worker.dead_letters.patch import InvalidPatch, Patches
from worker.dead_letters.selection import Selection
from worker.errors import TopologyError, UsageError
from worker.settings import Settings

Outcome = Literal["replayed", "superseded", "rejected", "unproven", "unfit", "discarded"]


@dataclass(slots=True)
class Plan:
    """`total` letters lie there and `matching` of them match. Of these, `unfit` are refused after the patch
    (`unfit_because` counts them by reason), `rejected` are replayed though they are invalid as they are, and
    `unproven` could overwrite something newer, for all that the journal tells. `ids` and `resources` are
    those of the matching letters; a letter that names no resource counts as one of its own."""

    total: int = 0
    matching: int = 0
    unfit: int = 0
    superseded: int = 0
    rejected: int = 0
    unproven: int = 0
    resources: set[Resource | str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    unfit_because: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, letter: Letter) -> None:
        """Count a matching letter."""
        self.matching += 1
        self.ids.add(letter.id)
        self.resources.add(letter.resource or letter.id)
        self.unfit += outcome == "unfit"
        self.superseded += outcome == "superseded"
        self.rejected += outcome == "rejected"
        self.unproven += outcome == "unproven"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a replay would make of one letter. `why` is the reason, or the newer request's id."""

    letter: Letter
    outcome: Outcome
    why: str = ""


class Planner:
    """Looks at letters, and at the journal, before anything is published."""

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        patches: Patches,
        *,
        force: bool = False,
        accept_unencrypted: bool = False,
    ) -> None:
        self._settings = settings
        self._selection = selection
        self._patches = patches
        self._force = force
        self._accept_unencrypted = accept_unencrypted
        if not settings.journal and not force:
            raise UsageError(
                "Without a journal (OTT_JOURNAL=false) nobody knows whether a replay would overwrite "
                "a newer registration: give --force to replay all the same"
            )

    async def make(self, box: DeadLetterBox, tell: Callable[[Forecast], None]) -> Plan:
        """Look at all letters and `tell` the forecast of each matching one."""
        plan = Plan(total=await box.depth())
        newest = None if self._force else await self._read_journal(box)
        async with contextlib.aclosing(box.look(self._selection)) as letters:
            async for letter in letters:
                forecast = self._forecast(letter, newest)
                plan.add(forecast.outcome, letter)
                if forecast.outcome == "unfit":
                    plan.unfit_because[forecast.why] += 1
                tell(forecast)
        return plan

    def _forecast(self, letter: Letter, newest: JournalIndex | None) -> Forecast:
        resource = letter.resource
        if why := why_not_replayable(letter, self._settings, accept_unencrypted=self._accept_unencrypted):
            return Forecast(letter, "unfit", why)
        patch = self._patches.of(letter)
        if isinstance(patch, InvalidPatch):
            return Forecast(letter, "unfit", str(patch))
        if patch is not None:
            patched = patch.apply(letter.delivery.body, self._settings.max_body_bytes)
            if isinstance(patched, InvalidPatch):
                return Forecast(letter, "unfit", str(patched))
            resource = Resource(letter.account, patched.platform, patched.resource_id)
        elif refusal := self._refusal(letter):
            return Forecast(letter, "rejected", refusal)
        if newest is None or resource is None:
            return Forecast(letter, "replayed")
        return _beside(newest, letter, resource)

    def _refusal(self, letter: Letter) -> str:
        """The error that the worker will find in an unpatched request."""
        properties = letter.delivery.properties
        parsed = parse_registration(
            letter.delivery.body,
            content_type=properties.text("content_type"),
            content_encoding=properties.text("content_encoding"),
            max_bytes=self._settings.max_body_bytes,
        )
        if not isinstance(parsed, Rejection):
            return ""
        return "; ".join(error.message for error in parsed.errors) or parsed.message

    async def _read_journal(self, box: DeadLetterBox) -> JournalIndex | None:
        """The journal from the oldest letter on; an empty index where there is no journal."""
        oldest = await self._oldest(box)
        if oldest is None:
            return None
        newest = JournalIndex(since=oldest)
        with contextlib.suppress(TopologyError):
            async with open_journal(self._settings) as reader:
                await read_into(newest, reader, await reader.first())
        return newest

    async def _oldest(self, box: DeadLetterBox) -> int | None:
        oldest = None
        async with contextlib.aclosing(box.look(self._selection)) as letters:
            async for letter in letters:
                oldest = letter.true_after if oldest is None else min(oldest, letter.true_after)
        return oldest


def _beside(newest: JournalIndex, letter: Letter, resource: Resource) -> Forecast:
    """The forecast for a valid request, by what the journal holds for its resource."""
    newer = newest.newer_than(resource, letter.true_after)
    if newer is not None:
        return Forecast(letter, "superseded", newer)
    if not newest.reaches_back_to(letter.id, resource, letter.received_after):
        return Forecast(letter, "unproven")
    return Forecast(letter, "replayed")


def why_not_replayable(letter: Letter, settings: Settings, *, accept_unencrypted: bool) -> str:
    """Why no patch makes a letter replayable; `""` where it can be replayed.

    With OTT_DEAD_LETTER_KEYS the worker encrypts all its letters. An unencrypted one comes from the broker,
    or somebody else put it into the queue.
    """
    if letter.closed:
        return letter.closed
    if settings.dead_letter_keys is None or letter.was_sealed or letter.is_brokers or accept_unencrypted:
        return ""
    return (
        "The dead letter lies in the clear, though OTT_DEAD_LETTER_KEYS is set: look at it (show), and give "
        "--accept-unencrypted to replay it all the same"
    )
