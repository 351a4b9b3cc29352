"""The dead letters as the pages show them: what is known of each, its causes, and filters.

To look at a queue is to consume from it, while everybody else has to wait. So the pages show a copy. It is
made anew only while somebody looks, when the queue's depth has changed or the copy is old, and never for
more than a small share of the time. It holds no body: a letter's page looks for that in the queue.
"""

import asyncio
import contextlib
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from multidict import MultiMapping

from worker.console.kept import Kept
from worker.contract.timestamps import moment
from worker.dead_letters.groups import Cause, causes_of
from worker.dead_letters.letter import Letter, LetterFacts
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.selection import Selection
from worker.settings import Settings

LEAST_LIFE = 2.0  # seconds that a copy stays good, at least
SHARE = 5  # a fifth of the time, at most, is spent on looking
LONGEST_LIFE = 30.0  # seconds; a queue of the same depth may hold other letters by then
MOST_BYTES = 64_000_000  # of the copy; of more letters the newest are shown
ROW_BYTES = 450  # of a letter in the copy, besides its texts
OPENED_KEPT = 8  # letters whose page was opened last
BREATH = 100  # letters between two pauses for other pages


@dataclass(frozen=True, slots=True)
class Filter:
    """What the query of a URL asks for. `given` are its words, to make further URLs of."""

    selection: Selection = field(default_factory=Selection)
    given: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.given)

    def apply(self, rows: Iterable[LetterFacts]) -> Iterator[LetterFacts]:
        """The letters that match, in their order."""
        return (row for row in rows if row in self.selection)


FILTERS = ("reason", "platform", "resource", "account", "user", "error", "since", "until", "id", "cause")


def filter_of(query: "MultiMapping[str]") -> Filter:
    """The filter that a query or a form names. Raises UsageError where a time is none."""
    given = {name: value for name in FILTERS if (value := query.get(name, "").strip())}

    def words(name: str) -> frozenset[str]:
        return frozenset({given[name]} if name in given else ())

    selection = Selection(
        reasons=words("reason"),
        platforms=words("platform"),
        resources=words("resource"),
        accounts=words("account"),
        users=words("user"),
        errors=words("error"),
        causes=words("cause"),
        ids=words("id"),
        since=moment(given.get("since"), "Since"),
        until=moment(given.get("until"), "Until"),
    )
    return Filter(selection, given)


class LetterCopy:
    """The copy of the dead letter queue. `total` letters are in the queue, of which `rows` are the newest."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._renewable_at = float("-inf")
        self._first_seen: dict[str, int] = {}
        self._opened: OrderedDict[str, Letter] = OrderedDict()
        self.rows: Kept[Sequence[LetterFacts]] = Kept(self._read, (), LEAST_LIFE)
        self.version = 0
        self.seen = 0
        self.total = 0
        self.causes: list[Cause] = []
        self.choices = _choices([])

    @property
    def is_complete(self) -> bool:
        """Whether the queue was looked through at least once."""
        return self.rows.as_of is not None

    def depth_is(self, depth: int | None) -> None:
        """What the queue holds by now: the copy is renewed when it differs."""
        if depth is not None and depth != self.total and time.monotonic() > self._renewable_at:
            self.rows.expire()

    def shown(self, wanted: Filter, version: str) -> list[str]:
        """The ids of the letters that a page of this version showed for the filter; without a version, of all
        that match."""
        newest = int(version) if version.isdecimal() else self.version
        return [row.key for row in wanted.apply(self.rows.value) if self._first_seen[row.key] <= newest]

    async def find(self, name: str) -> Letter | None:
        """The letter of this id, or the only one whose request has it. Raises AmbiguousId, or WorkerError
        where it cannot be looked for."""
        if name in self._opened:
            return self._opened[name]
        selection = Selection(ids=frozenset({name}))
        if self.is_complete and not self.rows.trouble and len(self.rows.value) == self.total:
            known = selection.named(row for row in self.rows.value if row in selection)
            if not known:
                return None
            selection = Selection(ids=frozenset({known[0].key}))
        async with open_dead_letters(self._settings) as queue:
            found = selection.named(await queue.read(selection, lambda letter: letter))
        if not found:
            return None
        self._opened[name] = found[0]
        if len(self._opened) > OPENED_KEPT:
            self._opened.popitem(last=False)
        return found[0]

    async def _read(self) -> Sequence[LetterFacts]:
        rows: deque[LetterFacts] = deque()
        size = 0
        async with open_dead_letters(self._settings) as queue:
            started = time.monotonic()
            self.seen, self.total = 0, await queue.depth()
            async with contextlib.aclosing(queue.look(Selection())) as letters:
                async for letter in letters:
                    row = letter.facts()
                    rows.append(row)
                    size += _size(row)
                    while size > MOST_BYTES:
                        size -= _size(rows.popleft())
                    self.seen += 1
                    if self.seen % BREATH == 0:
                        await asyncio.sleep(0)
            now = time.monotonic()
        self.total = self.seen
        self.version += 1
        self._first_seen = {row.key: self._first_seen.get(row.key, self.version) for row in rows}
        for key in [key for key, letter in self._opened.items() if letter.key not in self._first_seen]:
            del self._opened[key]
        self.causes, self.choices = causes_of(rows), _choices(rows)
        self._renewable_at = now + max(LEAST_LIFE, SHARE * (now - started))
        self.rows.life = max(LONGEST_LIFE, SHARE * (now - started))
        return tuple(rows)


def _size(row: LetterFacts) -> int:
    texts = (row.id, row.error, row.resource_id, row.user)
    return ROW_BYTES + sum(sys.getsizeof(text) for text in texts)


def _choices(rows: Iterable[LetterFacts]) -> dict[str, list[str]]:
    """What the filters can be set to."""
    rows = list(rows)
    return {
        "reasons": sorted({row.reason for row in rows}),
        "platforms": sorted({row.platform for row in rows if row.platform}),
        "accounts": sorted({row.account for row in rows if row.account}),
        "users": sorted({row.user for row in rows if row.user}),
    }


def as_time(micros: int | None) -> datetime | None:
    """A moment of a letter."""
    return None if micros is None else datetime.fromtimestamp(micros / 1_000_000, UTC)
