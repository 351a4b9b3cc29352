"""What a replay or a discard would do, letter by letter. Planning publishes nothing and removes nothing."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from worker.broker.journal import open_journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.registration import Rejection, parse_registration
from worker.contract.settlement import Resource, brief
from worker.dead_letters.facts import LetterFacts, Selection
from worker.dead_letters.letter import Letter
from worker.dead_letters.patch import Patched, Patches, Unfit
from worker.dead_letters.queue import DeadLetterQueue
from worker.errors import TopologyError, UsageError
from worker.settings import Settings

Kind = Literal["replay", "discard"]
Outcome = Literal["replayed", "superseded", "rejected", "unproven", "unfit", "discarded"]
"""`unproven`: the journal cannot rule out a newer registration. `unfit`: cannot be replayed, or is invalid
after its patch. `rejected`: invalid as it is."""


class Forecast(NamedTuple):
    """An outcome in words: in a column of a table, and behind a number of letters. `hopeless`: nothing is
    registered."""

    label: str
    words: str
    hopeless: bool = False


FORECASTS: dict[Outcome, Forecast] = {
    "replayed": Forecast("replayed", "would be replayed"),
    "superseded": Forecast("superseded", "would be superseded by newer registrations", True),
    "unproven": Forecast(
        "needs force",
        "could overwrite a newer registration, since the journal does not reach back to them",
        True,
    ),
    "rejected": Forecast("rejected again", "would be rejected again as they are", True),
    "unfit": Forecast("left where it is", "cannot be replayed"),
    "discarded": Forecast("discarded", "would be removed for good"),
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
    """What the plan says of one letter, whose body it does not keep. `id` is its request's as it came. `why`
    is the reason, or the newer request's id. `resource` is where the request would be registered,
    `named_resource` what it names without its patch."""

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


@dataclass(frozen=True)
class Plan:
    """The letters that match, of `total` in the queue."""

    wish: Wish
    total: int
    letters: Sequence[Planned]

    @property
    def missing(self) -> frozenset[str]:
        """Ids that name no letter."""
        return self.wish.selection.missing(self.letters)

    @cached_property
    def going(self) -> list[Planned]:
        """The letters that would be replayed or discarded."""
        return [letter for letter in self.letters if letter.outcome not in self.wish.staying]

    @cached_property
    def canaries(self) -> list[Planned]:
        """Of each cause the first letter that would be registered."""
        first: dict[str, Planned] = {}
        for letter in self.going:
            if letter.outcome == "replayed":
                first.setdefault(letter.facts.cause, letter)
        return list(first.values())

    @cached_property
    def causes(self) -> list[str]:
        """What the letters died of, the most frequent first."""
        causes = Counter((each.facts.reason, each.facts.error) for each in self.letters)
        return [
            f"{reason}: {brief(error)}" if error else reason for (reason, error), _ in causes.most_common()
        ]

    @cached_property
    def counts(self) -> Counter[Outcome]:
        """The letters by what would become of them."""
        return Counter(letter.outcome for letter in self.letters)

    @property
    def refusal(self) -> str:
        """Why this is not done: nothing would be registered. `""` where it is forced."""
        hopeless = [outcome for outcome, forecast in FORECASTS.items() if forecast.hopeless]
        if self.wish.force or self.counts["replayed"] or not any(self.counts[each] for each in hopeless):
            return ""
        return f"Nothing would be registered: {self._in_words(hopeless)}"

    @property
    def sentence(self) -> str:
        """The plan in words."""
        words = self._in_words(FORECASTS)
        return f"{words}." if words else "None of them is there any more."

    def _in_words(self, outcomes: Iterable[Outcome]) -> str:
        return "; ".join(
            f"{self.counts[each]:,} {FORECASTS[each].words}"
            + (", and stay" if each in self.wish.staying else "")
            for each in outcomes
            if self.counts[each]
        )


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
    named = Selection(ids=wish.patches.names)
    if named.ids:
        named.named(each for each in letters if each.key in named.ids or each.id in named.ids)
    fields = wish.patches.of_one_resource
    resources = len({each.named_resource or each.key for each in letters})
    if fields and resources > 1 and not wish.same_for_all:
        raise UsageError(
            f"--set {fields[0]} would give {resources} pages or channels the same value: narrow "
            "the filter to one of them, or give --same-for-all if that is meant"
        )
    judged = [each for each in letters if each.outcome == "replayed" and each.resource is not None]
    if judged and not wish.force:
        index = await _read_journal(settings, min(each.true_after for each in judged))
        for each in judged:
            _judge(each, index)
    return Plan(wish, total, letters)


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
    try:
        prepared = prepare(letter, settings, wish)
    except Unfit as problem:
        planned.outcome, planned.why = "unfit", str(problem)
        return planned
    if prepared is not None:
        planned.resource = Resource(letter.account, prepared.platform, prepared.resource_id)
    else:
        planned.why = _refusal(letter, settings)
    planned.outcome = "rejected" if planned.why else "replayed"
    return planned


def prepare(letter: Letter, settings: Settings, wish: Wish) -> Patched | None:
    """The letter's corrected request, None where it goes as it is. Raises Unfit where it cannot be replayed.

    With OTT_DEAD_LETTER_KEYS the worker encrypts all its letters. An unencrypted one comes from the broker,
    or somebody else put it into the queue.
    """
    if letter.closed:
        raise Unfit(letter.closed)
    is_trusted = letter.was_sealed or letter.is_brokers or wish.accept_unencrypted
    if settings.dead_letter_keys is not None and not is_trusted:
        raise Unfit(
            "this dead letter is not encrypted although OTT_DEAD_LETTER_KEYS is set: inspect it with show, "
            "then add --accept-unencrypted"
        )
    patch = wish.patches.of(letter)
    return None if patch is None else patch.apply(letter.delivery.body, settings.max_body_bytes)


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
