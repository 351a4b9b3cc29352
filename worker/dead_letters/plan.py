"""What a replay or a discard would do, letter by letter. Planning publishes nothing and removes nothing."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from worker.broker.journal import open_journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.registration import Rejection, parse_registration
from worker.contract.settlement import Resource, brief
from worker.dead_letters.letter import Letter, LetterFacts
from worker.dead_letters.patch import InvalidPatch, Patched, Patches
from worker.dead_letters.queue import DeadLetterQueue
from worker.dead_letters.selection import Selection
from worker.errors import TopologyError, UsageError
from worker.settings import Settings

Kind = Literal["replay", "discard"]
Outcome = Literal["replayed", "superseded", "rejected", "unproven", "unfit", "discarded"]
"""`unproven`: the journal cannot rule out a newer registration. `unfit`: cannot be replayed, or is invalid
after its patch. `rejected`: invalid as it is."""


_HOPELESS: dict[Outcome, str] = {
    "superseded": "would be superseded by newer registrations",
    "unproven": "could overwrite a newer registration, since the journal does not reach back to them",
    "rejected": "would be rejected again: correct them first",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants done, and with which letters."""

    kind: Kind
    selection: Selection
    patches: Patches = field(default_factory=Patches)
    force: bool = False
    accept_unencrypted: bool = False
    same_for_all: bool = False

    @property
    def staying(self) -> frozenset[Outcome]:
        """Forecasts of letters that stay where they are."""
        return frozenset({"unfit"} if self.force else {"unfit", "unproven", "rejected"})


@dataclass(slots=True, eq=False)
class Planned:
    """What the plan says of one letter. `id` is its request's as it came. `why` is the reason, or the newer
    request's id. `resource` is where the request would be registered, `named_resource` what it names
    without its patch."""

    facts: LetterFacts
    id: str
    digest: str
    named_resource: Resource | None
    resource: Resource | None
    received_after: int
    true_after: int
    outcome: Outcome = "discarded"
    why: str = ""

    @property
    def key(self) -> str:
        """The letter's own id."""
        return self.facts.key

    @property
    def identity(self) -> tuple[str, str]:
        """The letter's, when it was planned."""
        return self.key, self.digest


@dataclass(frozen=True, slots=True)
class Plan:
    """The letters that match, of `total` in the queue. `resources` counts what they are about; a letter that
    names no resource counts as one of its own. `missing` are ids that name no letter."""

    wish: Wish
    total: int
    letters: Sequence[Planned]
    resources: int
    missing: frozenset[str]

    @property
    def going(self) -> list[Planned]:
        """The letters that would be replayed or discarded."""
        return [letter for letter in self.letters if letter.outcome not in self.wish.staying]

    @property
    def causes(self) -> list[str]:
        """What the letters died of, the most frequent first."""
        return [
            f"{reason}: {brief(error)}" if error else reason
            for (reason, error), _ in Counter(
                (each.facts.reason, each.facts.error) for each in self.letters
            ).most_common()
        ]

    @property
    def counts(self) -> Counter[Outcome]:
        """The letters by what would become of them."""
        return Counter(letter.outcome for letter in self.letters)

    @property
    def refusal(self) -> str:
        """Why this is not done: nothing would be registered. `""` where it is forced."""
        if self.wish.kind == "discard" or self.wish.force or not self.letters:
            return ""
        counts = self.counts
        why = [f"{counts[each]:,} {text}" for each, text in _HOPELESS.items() if counts[each]]
        if counts["replayed"] or not why:
            return ""
        return f"Nothing would be registered: {'; '.join(why)}"


async def make_plan(queue: DeadLetterQueue, settings: Settings, wish: Wish) -> Plan:
    """Look at all letters that match, and at the journal. Raises UsageError where the wish is not safe (a
    value that belongs to one resource for several), AmbiguousId, or as the queue does."""
    if wish.kind == "replay" and not settings.journal and not wish.force:
        raise UsageError(
            "Without a journal (OTT_JOURNAL=false) nobody knows whether a replay would overwrite "
            "a newer registration: give --force to replay all the same"
        )
    total = await queue.depth()
    letters = wish.selection.named(
        await queue.read(wish.selection, lambda letter: _planned(letter, settings, wish))
    )
    missing = wish.selection.ids - {name for each in letters for name in (each.key, each.id)}
    named = Selection(ids=wish.patches.names)
    if named.ids:
        named.named(each for each in letters if each.key in named.ids or each.id in named.ids)
    resources = {each.named_resource or each.key for each in letters}
    plan = Plan(wish, total, letters, len(resources), frozenset(missing))
    fields = wish.patches.of_one_resource
    if fields and plan.resources > 1 and not wish.same_for_all:
        raise UsageError(
            f"--set {fields[0]} would give {plan.resources} pages or channels the same value: narrow "
            "the filter to one of them, or give --same-for-all if that is meant"
        )
    judged = [each for each in letters if each.outcome == "replayed" and each.resource is not None]
    if judged and not wish.force:
        index = await _read_journal(settings, min(each.true_after for each in judged))
        for each in judged:
            _judge(each, index)
    return plan


def _planned(letter: Letter, settings: Settings, wish: Wish) -> Planned:
    planned = Planned(
        facts=letter.facts(),
        id=letter.id,
        digest=letter.digest,
        named_resource=letter.resource,
        resource=letter.resource,
        received_after=letter.received_after,
        true_after=letter.true_after,
    )
    if wish.kind == "discard":
        return planned
    prepared = prepare(letter, settings, wish)
    if isinstance(prepared, InvalidPatch):
        planned.outcome, planned.why = "unfit", str(prepared)
    elif prepared is not None:
        planned.outcome = "replayed"
        planned.resource = Resource(letter.account, prepared.platform, prepared.resource_id)
    else:
        planned.why = _refusal(letter, settings)
        planned.outcome = "rejected" if planned.why else "replayed"
    return planned


def prepare(letter: Letter, settings: Settings, wish: Wish) -> "Patched | InvalidPatch | None":
    """The letter's corrected request, None where it goes as it is, or why it cannot be replayed."""
    if why := why_not_replayable(letter, settings, accept_unencrypted=wish.accept_unencrypted):
        return InvalidPatch((why,))
    patch = wish.patches.of(letter)
    if patch is None or isinstance(patch, InvalidPatch):
        return patch
    return patch.apply(letter.delivery.body, settings.max_body_bytes)


def _refusal(letter: Letter, settings: Settings) -> str:
    """The error that the worker will find in an unpatched request."""
    properties = letter.delivery.properties
    parsed = parse_registration(
        letter.delivery.body,
        content_type=properties.text("content_type"),
        content_encoding=properties.text("content_encoding"),
        max_bytes=settings.max_body_bytes,
    )
    if not isinstance(parsed, Rejection):
        return ""
    return "; ".join(error.message for error in parsed.errors) or parsed.message


async def _read_journal(settings: Settings, since: int) -> JournalIndex:
    """The journal since then; an empty index where there is no journal."""
    index = JournalIndex(since=since)
    with contextlib.suppress(TopologyError):
        async with open_journal(settings) as reader:
            await read_into(index, reader, await reader.first())
    return index


def _judge(planned: Planned, index: JournalIndex) -> None:
    """Forecast a valid request by what the journal holds for its resource."""
    assert planned.resource is not None
    newer = index.newer_than(planned.resource, planned.true_after)
    if newer is not None:
        planned.outcome, planned.why = "superseded", newer
    elif not index.reaches_back_to(planned.id, planned.resource, planned.received_after):
        planned.outcome = "unproven"


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
        "this dead letter is not encrypted although OTT_DEAD_LETTER_KEYS is set: inspect it with show, then "
        "add --accept-unencrypted"
    )
