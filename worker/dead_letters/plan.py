"""What a replay or discard will do, letter by letter. Planning changes nothing."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from worker.broker.journal import open_journal
from worker.broker.journal_index import JournalIndex, read_into
from worker.contract.registration import Rejection, parse_registration
from worker.contract.selection import Selection
from worker.contract.settlement import Resource, brief
from worker.dead_letters.letter import Facts, Letter, is_brokers
from worker.dead_letters.patch import NotReplayable, Patches
from worker.dead_letters.queue import DeadLetterQueue
from worker.errors import TopologyError, UsageError
from worker.settings import Settings

Kind = Literal["replay", "discard"]
Outcome = Literal["replayed", "superseded", "rejected", "unverifiable", "not_replayable", "discarded"]
"""`unverifiable`: the journal cannot rule out a newer registration. `not_replayable`: the letter cannot be
read or trusted, or is invalid after its patch. `rejected`: its unpatched request is invalid."""


class Forecast(NamedTuple):
    """The texts of an outcome: in a column of a table, and after a number of letters."""

    label: str
    words: str


FORECASTS: dict[Outcome, Forecast] = {
    "replayed": Forecast("replayed", "would be replayed"),
    "superseded": Forecast("superseded", "would be superseded by newer registrations"),
    "unverifiable": Forecast(
        "needs force", "could overwrite a newer registration, because the journal does not reach back to them"
    ),
    "rejected": Forecast("rejected again", "would be rejected again as they are"),
    "not_replayable": Forecast("stays", "cannot be replayed"),
    "discarded": Forecast("discarded", "would be removed for good"),
}
HOPELESS: tuple[Outcome, ...] = ("superseded", "unverifiable", "rejected")  # nothing is registered


class Planned:
    """The plan for one letter, without its body. `facts` may be shown. `why` is the reason, or the newer
    request's id. `resource` is that of the patched request, `named_resource` that of the unpatched one."""

    def __init__(self, letter: Letter) -> None:
        self.facts = letter.shown()
        self.key, self.identity, self.id = letter.key, letter.identity, letter.id
        self.named_resource = self.resource = letter.resource
        self.received_after, self.true_after = letter.received_after, letter.true_after
        self.outcome: Outcome = "discarded"
        self.why = ""


@dataclass(eq=False)
class Plan:
    """Which letters are to be replayed or discarded. `look` finds the matching `letters` among `total` in the
    queue; `going` are those that will be replayed or discarded. `missing` are ids without a letter,
    `unpatched` such ids in the table of patches."""

    kind: Kind
    selection: Selection
    patches: Patches = field(default_factory=Patches)
    force: bool = False
    accept_unencrypted: bool = False
    same_for_all: bool = False
    total: int = 0
    letters: list[Planned] = field(default_factory=list)
    going: list[Planned] = field(default_factory=list)
    missing: frozenset[str] = frozenset()
    unpatched: frozenset[str] = frozenset()

    @property
    def staying(self) -> frozenset[Outcome]:
        """The outcomes with which a letter stays in the queue."""
        return frozenset({"not_replayable"} if self.force else {"not_replayable", "unverifiable", "rejected"})

    @property
    def canaries(self) -> list[Planned]:
        """The first letter of each cause that would be registered."""
        first: dict[str, Planned] = {}
        for letter in self.going:
            if letter.outcome == "replayed":
                first.setdefault(letter.facts["cause"], letter)
        return list(first.values())

    @property
    def causes(self) -> list[str]:
        """The reasons and errors of the letters, most frequent first."""
        causes = Counter((each.facts["reason"], brief(each.facts["error"])) for each in self.letters)
        return [": ".join(filter(None, cause)) for cause, _ in causes.most_common()]

    @property
    def counts(self) -> Counter[Outcome]:
        """The number of letters by outcome."""
        return Counter(letter.outcome for letter in self.letters)

    @property
    def refusal(self) -> str:
        """Why the plan is refused: nothing would be registered. `""` if it is not refused."""
        hopeless = self._in_words(HOPELESS)
        if self.force or self.counts["replayed"] or not hopeless:
            return ""
        return f"Nothing would be registered: {hopeless}"

    @property
    def sentence(self) -> str:
        """The plan as text."""
        words = self._in_words(FORECASTS)
        return f"{words}." if words else "None of them is in the queue any more."

    def _in_words(self, outcomes: Iterable[Outcome]) -> str:
        counts = self.counts
        return "; ".join(
            f"{counts[each]:,} {FORECASTS[each].words}" + (", and stay" if each in self.staying else "")
            for each in outcomes
            if counts[each]
        )

    async def look(self, queue: DeadLetterQueue, settings: Settings) -> None:
        """Find the matching letters and forecast their outcomes. Raises UsageError if the plan is not safe (a
        value that belongs to one resource for several), AmbiguousId, or as DeadLetterQueue does."""
        if self.kind == "replay" and not settings.journal and not self.force:
            raise UsageError(
                "Without a journal (OTT_JOURNAL=false) a replay could overwrite a newer registration: "
                "use --force to replay anyway"
            )
        facts: list[Facts] = []

        def planned(letter: Letter) -> Planned:
            facts.append(letter.facts)
            return self._planned(letter, settings)

        self.total = await queue.depth()
        self.letters, self.missing = await queue.find(self.selection, planned)
        rows = Selection(id=self.patches.names)
        rows.keys(each for each in facts if each in rows)
        self.unpatched = rows.missing(facts)
        fields = self.patches.of_one_resource
        resources = len({each.named_resource or each.key for each in self.letters})
        if fields and resources > 1 and not self.same_for_all:
            raise UsageError(
                f"--set {fields[0]} would give {resources} pages or channels the same value: narrow "
                "the filter to one of them, or use --same-for-all if that is intended"
            )
        await self._judge(settings)
        self.going = [letter for letter in self.letters if letter.outcome not in self.staying]

    def _planned(self, letter: Letter, settings: Settings) -> Planned:
        planned = Planned(letter)
        if self.kind == "discard":
            return planned
        try:
            body, planned.resource = self.prepare(letter, settings)
        except NotReplayable as problem:
            planned.outcome, planned.why = "not_replayable", str(problem)
            return planned
        if body is letter.delivery.body:
            planned.why = _refusal(letter, settings)
        planned.outcome = "rejected" if planned.why else "replayed"
        return planned

    def prepare(self, letter: Letter, settings: Settings) -> tuple[bytes, Resource | None]:
        """The body and resource of the letter's replay. Raises NotReplayable.

        With OTT_DEAD_LETTER_KEYS the worker encrypts all its letters. An unencrypted one comes from the
        broker, or may be forged."""
        if letter.closed:
            raise NotReplayable(letter.closed)
        is_trusted = letter.was_sealed or is_brokers(letter.delivery) or self.accept_unencrypted
        if settings.dead_letter_keys is not None and not is_trusted:
            raise NotReplayable(
                "this dead letter is not encrypted although OTT_DEAD_LETTER_KEYS is set: inspect it with "
                "show, then add --accept-unencrypted"
            )
        return self.patches.apply(letter, settings.max_body_bytes)

    async def _judge(self, settings: Settings) -> None:
        """Forecast the outcomes of the valid requests from the journal."""
        judged = [each for each in self.letters if each.outcome == "replayed" and each.resource is not None]
        if not judged or self.force:
            return
        index = JournalIndex(since=min(each.true_after for each in judged))
        with contextlib.suppress(TopologyError):  # there is no journal
            async with open_journal(settings) as reader:
                await read_into(index, reader, await reader.first())
        for each in judged:
            assert each.resource is not None
            newer = index.newer_than(each.resource, each.true_after)
            if newer is not None:
                each.outcome, each.why = "superseded", newer
            elif not index.reaches_back_to(each.id, each.resource, each.received_after):
                each.outcome = "unverifiable"


def _refusal(letter: Letter, settings: Settings) -> str:
    """The error for which the worker would reject the unpatched request again; `""` if there is none."""
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
