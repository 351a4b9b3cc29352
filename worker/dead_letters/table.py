"""Dead letters as a table: exported, corrected in a spreadsheet, and read back as a patch for each letter.

A row that is read back changes only the values that differ from the letter in the queue. So an empty cell, a
masked secret or an id that a spreadsheet has rounded overwrites nothing.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import ATTRIBUTES, FIELDS, PLATFORM_NAME, SECRET_FIELDS
from worker.contract.secrets import MASK, SecretMask
from worker.contract.settlement import brief
from worker.dead_letters.letter import Letter
from worker.dead_letters.patch import Patch, Patches, Unfit
from worker.errors import UsageError
from worker.files.cells import clean, flag, guard
from worker.files.csv_file import line_of
from worker.files.damage import ACCOUNT, is_rounded
from worker.files.source import Source, Unreadable
from worker.files.table import Record, open_table

LETTER: Final = "letter"
ABOUT: Final = (LETTER, "id", "reason", "error", "deadAt")
COLUMNS: Final = (*ABOUT, ACCOUNT, PLATFORM_NAME, *FIELDS)


def header() -> bytes:
    """The table's beginning: a byte order mark, by which spreadsheets know UTF-8, and the names."""
    return codecs.BOM_UTF8 + line_of(COLUMNS)


def row(letter: Letter, *, reveal: bool) -> bytes:
    """One letter; without `reveal` its secrets are masked."""
    cells = _cells(letter)
    summary = letter.facts().document()
    mask = (lambda text: text) if reveal else SecretMask.of_body(letter.delivery.body)
    shown = {name: MASK if name in SECRET_FIELDS and not reveal else mask(cells[name]) for name in cells}
    about = {name: summary[name] or "" for name in ABOUT}
    about["error"] = brief(about["error"])
    return line_of([guard(str({**about, **shown}.get(name, ""))) for name in COLUMNS])


@dataclass(frozen=True, slots=True)
class TablePatches(Patches):
    """The patches that a table holds, by the ids of letters. In a table that release 1.1.0 exported they are
    by the ids of requests."""

    by_letter: Mapping[str, Record] = field(default_factory=dict)
    by_request: Mapping[str, Record] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The ids in the table."""
        return frozenset({*self.by_letter, *self.by_request})

    def of(self, letter: Letter) -> Patch | None:
        """The changes in the letter's row, None if there are none. Raises Unfit if cells cannot be
        trusted."""
        record = self.by_letter.get(letter.key) or self.by_request.get(letter.id)
        if record is None:
            return None
        before, mask = _cells(letter), SecretMask.of_body(letter.delivery.body)
        changed = {
            name: value
            for name, value in record.values.items()
            if name not in ABOUT
            and not _is_same(name, before.get(name, ""), value)
            and value != clean(mask(before.get(name, "")))
        }
        problems = [str(each) for each in record.problems if not each.field or each.field in changed]
        if problems:
            raise Unfit(f"line {record.line}: {problems[0]}")
        if ACCOUNT in changed:
            raise Unfit(f"line {record.line}: {ACCOUNT} cannot be changed in a dead letter")
        return Patch(changed) if changed else None


def read_patches(path: str) -> TablePatches:
    """The table in a CSV file or a workbook. Raises UsageError."""
    by_letter: dict[str, Record] = {}
    by_request: dict[str, Record] = {}
    try:
        with Source(path) as source:
            for record in open_table(source, also=ABOUT):
                if letter := str(record.values.get(LETTER) or ""):
                    _add(by_letter, letter, record)
                else:
                    _add(by_request, str(record.values.get("id") or ""), record)
    except (UsageError, Unreadable) as error:
        raise UsageError(f"{path}: {error}") from None
    return TablePatches(by_letter=by_letter, by_request=by_request)


def _add(records: dict[str, Record], name: str, record: Record) -> None:
    if not name:
        raise UsageError(f"line {record.line} names no letter: its column letter is empty or missing")
    earlier = records.setdefault(name, record)
    if earlier.values != record.values:
        lines = f"lines {earlier.line} and {record.line}"
        raise UsageError(f"{lines} are both about the letter {name}: keep one of them")


def _cells(letter: Letter) -> dict[str, str]:
    """The letter's fields as cells; a field that no cell can hold is left out."""
    cells = {ACCOUNT: letter.account or ""}
    try:
        document = {} if letter.closed else parse_object(letter.delivery.body)
    except MalformedBody:
        document = {}
    attributes = document.get(ATTRIBUTES)
    fields = {PLATFORM_NAME: document.get(PLATFORM_NAME)} | (
        attributes if isinstance(attributes, dict) else {}
    )
    for name in (PLATFORM_NAME, *FIELDS):
        value = fields.get(name)
        if isinstance(value, bool):
            cells[name] = "true" if value else "false"
        elif isinstance(value, str | int):
            cells[name] = str(value)
    return cells


def _is_same(name: str, before: str, value: Any) -> bool:
    """Whether a cell still says what it said when it was exported."""
    if name in SECRET_FIELDS and value == MASK:
        return True
    cell = clean(before)
    if type(value) is not str:
        return bool(flag(cell) == value)
    return value == cell or is_rounded(cell, value)
