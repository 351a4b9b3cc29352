"""The dead letters as the pages show them: a copy of the queue, its groups by cause, and filters.

To look at a queue is to consume from it, while everybody else has to wait. So the pages show a copy. It is
made anew only while somebody looks, when the queue's depth has changed or the copy is old, and never for
more than a small share of the time.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from multidict import MultiMapping

from worker.console.kept import Kept
from worker.dead_letters.box import open_box
from worker.dead_letters.groups import LetterGroup
from worker.dead_letters.letter import Letter
from worker.dead_letters.selection import Selection, moment
from worker.settings import Settings

LEAST_LIFE = 2.0  # seconds that a copy stays good, at least
SHARE = 5  # a fifth of the time, at most, is spent on looking
LONGEST_LIFE = 30.0  # seconds; a queue of the same depth may hold other letters by then
BODIES_KEPT = 64_000_000  # bytes; what is beyond is looked for when its page is opened
BREATH = 100  # letters between two pauses for other pages


@dataclass(frozen=True, slots=True)
class LetterRow:
    """A letter in the copy. `letter` has lost its body where `is_whole` is false."""

    letter: Letter
    cause: str
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """Letters that died of the same on one platform and account. `key` names it in URLs, the same whenever it
    is made."""

    key: str
    platform: str | None
    account: str | None
    group: LetterGroup

    def document(self) -> dict[str, Any]:
        """The cause, as JSON."""
        return {
            "cause": self.key,
            **self.group.summary(),
            "ottPlatformName": self.platform,
            "accountId": self.account,
        }


def cause_key(letter: Letter) -> str:
    """The key of a letter's cause."""
    words = "\x00".join((letter.reason, letter.error, letter.platform or "", letter.account or ""))
    return hashlib.sha256(words.encode(errors="replace")).hexdigest()[:12]


def causes_of(rows: Iterable[LetterRow]) -> list[Cause]:
    """The causes, the one with the most letters first."""
    causes: dict[str, Cause] = {}
    for row in rows:
        letter = row.letter
        cause = causes.get(row.cause)
        if cause is None:
            group = LetterGroup(letter.reason, letter.error)
            cause = causes[row.cause] = Cause(row.cause, letter.platform, letter.account, group)
        cause.group.add(letter)
    return sorted(causes.values(), key=lambda cause: (-cause.group.count, cause.key))


@dataclass(frozen=True, slots=True)
class Filter:
    """What the query of a URL asks for. `given` are its words, to make further URLs of."""

    selection: Selection = field(default_factory=Selection)
    cause: str = ""
    account: str = ""
    error: str = ""
    given: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.given)

    def apply(self, rows: Iterable[LetterRow]) -> Iterator[LetterRow]:
        """The rows that match, in their order."""
        wanted = self.error.casefold()
        for row in rows:
            letter = row.letter
            if self.cause and row.cause != self.cause:
                continue
            if self.account and letter.account != self.account:
                continue
            if wanted and wanted not in letter.error.casefold():
                continue
            if letter in self.selection:
                yield row


FILTERS = ("reason", "platform", "resource", "account", "error", "since", "until", "id", "cause")


def filter_of(query: "MultiMapping[str]") -> Filter:
    """The filter that a query or a form names. Raises UsageError where a time is none."""
    given = {name: value for name in FILTERS if (value := query.get(name, "").strip())}

    def words(name: str) -> frozenset[str]:
        return frozenset({given[name]} if name in given else ())

    selection = Selection(
        reasons=words("reason"),
        platforms=words("platform"),
        resources=words("resource"),
        ids=words("id"),
        since=moment(given.get("since"), "Since"),
        until=moment(given.get("until"), "Until"),
    )
    return Filter(selection, given.get("cause", ""), given.get("account", ""), given.get("error", ""), given)


class LetterCopy:
    """The copy of the dead letter queue."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._renewable_at = float("-inf")
        self.rows: Kept[list[LetterRow]] = Kept(self._read, [], LEAST_LIFE)
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
        if depth is not None and depth != len(self.rows.value) and time.monotonic() > self._renewable_at:
            self.rows.expire()

    async def find(self, request_id: str) -> Letter | None:
        """The letter of a request, with its body. Raises WorkerError where it must be looked for in vain."""
        row = next((row for row in reversed(self.rows.value) if row.letter.id == request_id), None)
        if row is not None and row.is_whole:
            return row.letter
        if row is None and self.is_complete and not self.rows.trouble:
            return None
        selection = Selection(ids=frozenset({request_id}))
        async with (
            open_box(self._settings) as box,
            contextlib.aclosing(box.look(selection)) as letters,
        ):
            return await anext(letters, None)

    async def _read(self) -> list[LetterRow]:
        rows: list[LetterRow] = []
        kept = 0
        async with open_box(self._settings) as box:
            started = time.monotonic()
            self.seen, self.total = 0, await box.depth()
            async with contextlib.aclosing(box.look(Selection())) as letters:
                async for letter in letters:
                    size = len(letter.delivery.body)
                    is_whole = kept + size <= BODIES_KEPT
                    kept += size if is_whole else 0
                    rows.append(LetterRow(letter if is_whole else _bare(letter), cause_key(letter), is_whole))
                    self.seen += 1
                    if self.seen % BREATH == 0:
                        await asyncio.sleep(0)
            now = time.monotonic()
        self.causes, self.choices = causes_of(rows), _choices(rows)
        self._renewable_at = now + max(LEAST_LIFE, SHARE * (now - started))
        self.rows.life = max(LONGEST_LIFE, SHARE * (now - started))
        return rows


def _choices(rows: Sequence[LetterRow]) -> dict[str, list[str]]:
    """What the filters can be set to."""
    return {
        "reasons": sorted({row.letter.reason for row in rows}),
        "platforms": sorted({row.letter.platform for row in rows if row.letter.platform}),
        "accounts": sorted({row.letter.account for row in rows if row.letter.account}),
    }


def _bare(letter: Letter) -> Letter:
    return replace(letter, delivery=replace(letter.delivery, body=b""))


def as_time(micros: int | None) -> datetime | None:
    """A moment of a letter."""
    return None if micros is None else datetime.fromtimestamp(micros / 1_000_000, UTC)
