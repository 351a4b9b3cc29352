"""Corrections of dead letters before a replay: the same for all, or a table that was exported, corrected in a
spreadsheet and read back.

A row of the table changes only values that differ from the letter in the queue. An empty cell, a masked
secret or an id that a spreadsheet has rounded changes nothing."""

import codecs
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from worker.contract.json_body import MalformedBody, parse_object, to_json
from worker.contract.platforms import (
    ATTRIBUTES,
    ENDPOINT_URL,
    FIELDS,
    FLAG_FIELDS,
    PLATFORM_NAME,
    PLATFORMS,
    SECRET_FIELDS,
)
from worker.contract.registration import Rejection, validate
from worker.contract.secrets import MASK, SecretMask
from worker.contract.settlement import Resource, brief
from worker.dead_letters.letter import Letter
from worker.errors import UsageError, WorkerError
from worker.files.cells import clean, flag, guard
from worker.files.damage import ACCOUNT, is_rounded
from worker.files.source import Source
from worker.files.table import Record, Table, line_of

ABOUT: Final = ("letter", "id", "reason", "error", "deadAt")
COLUMNS: Final = (*ABOUT, ACCOUNT, PLATFORM_NAME, *FIELDS)
HEADER: Final = codecs.BOM_UTF8 + line_of(COLUMNS)  # spreadsheets recognize UTF-8 by the byte order mark
# Fields that several resources may share. Ids, names, tokens and secrets belong to one.
_COMMON_FIELDS = frozenset({PLATFORM_NAME, ENDPOINT_URL}) | FLAG_FIELDS
_FLAGS: Mapping[str, bool | int] = {"true": True, "false": False, "0": 0, "1": 1}


class NotReplayable(WorkerError):
    """A letter cannot be replayed, and why. It stays in the queue."""


@dataclass(frozen=True, slots=True)
class Patches:
    """New values of fields, named as in the request: the `same` for all letters, or each letter's row of a
    table. The keys of `rows` are the column that identifies the letter (`letter`, else `id`) and its
    value."""

    same: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[tuple[str, str], Record] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The ids in the table."""
        return frozenset(name for _, name in self.rows)

    @property
    def of_one_resource(self) -> list[str]:
        """The fields with the same value for all letters, although they belong to one resource."""
        return [name for name in self.same if name not in _COMMON_FIELDS]

    def of(self, letter: Letter) -> Mapping[str, Any]:
        """The letter's new values; empty if it is replayed unchanged. Raises NotReplayable if a changed cell
        is damaged."""
        record = self.rows.get(("letter", letter.key)) or self.rows.get(("id", letter.facts["id"]))
        if record is None:
            return self.same
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
            raise NotReplayable(f"line {record.line}: {problems[0]}")
        if ACCOUNT in changed:
            raise NotReplayable(f"line {record.line}: {ACCOUNT} cannot be changed in a dead letter")
        return changed

    def apply(self, letter: Letter, max_bytes: int) -> tuple[bytes, Resource | None]:
        """The body and resource of the patched request, or the letter's own if nothing changes. Raises
        NotReplayable with the errors of contract §3."""
        fields = self.of(letter)
        if not fields:
            return letter.delivery.body, letter.resource
        try:
            document = parse_object(letter.delivery.body)
        except MalformedBody as problem:
            raise NotReplayable(str(problem)) from None
        attributes = document.get(ATTRIBUTES)
        document[ATTRIBUTES] = dict(attributes) if isinstance(attributes, dict) else {}
        for name, value in fields.items():
            (document if name == PLATFORM_NAME else document[ATTRIBUTES])[name] = value
        platform = PLATFORMS.get(str(document.get(PLATFORM_NAME)))
        if platform and (strangers := fields.keys() - {PLATFORM_NAME, *platform.fields}):
            raise NotReplayable(f"{platform.name} has no {', '.join(sorted(strangers))}")
        parsed = validate(document)
        if isinstance(parsed, Rejection):
            raise NotReplayable("; ".join(error.message for error in parsed.errors))
        body = to_json(document)
        if len(body) > max_bytes:
            raise NotReplayable(f"The body is larger than {max_bytes} bytes")
        return body, Resource(letter.facts["accountId"], parsed.platform, parsed.resource_id)


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `FIELD=VALUE` and `FIELD=@FILE`. Raises UsageError, which never holds a value."""
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in (PLATFORM_NAME, *FIELDS):
            known = ", ".join([PLATFORM_NAME, *sorted(FIELDS)])
            raise UsageError(f"--set must be FIELD=VALUE with a field of the request: {known}")
        if value == "-":
            raise UsageError(f"--set {name}=@/dev/stdin reads a value from standard input")
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8-sig").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                raise UsageError(f"--set {assignment}: the file cannot be read: {why}") from None
        fields[name] = flag_of(f"--set {name}", value) if name in FLAG_FIELDS else value
    return fields


def flag_of(name: str, text: str) -> bool | int:
    """The value of a flag that a user typed. Raises UsageError."""
    if text not in _FLAGS:
        raise UsageError(f"{name} must be true, false, 0 or 1")
    return _FLAGS[text]


def row(letter: Letter, *, reveal: bool) -> bytes:
    """One letter as a line of the table; without `reveal` its secrets are masked."""
    cells = _cells(letter)
    if not reveal:
        mask = SecretMask.of_body(letter.delivery.body)
        cells = {name: MASK if name in SECRET_FIELDS else mask(text) for name, text in cells.items()}
    shown = letter.shown()
    cells |= {name: shown[name] or "" for name in ABOUT} | {"error": brief(shown["error"])}
    return line_of([guard(cells.get(name, "")) for name in COLUMNS])


def read_patches(path: str) -> Patches:
    """The table in a CSV file or a workbook. Raises UsageError."""
    rows: dict[tuple[str, str], Record] = {}
    try:
        with Source(path) as source:
            for record in Table(source, also=ABOUT):
                _add(rows, record)
    except WorkerError as error:
        raise UsageError(f"{path}: {error}") from None
    return Patches(rows=rows)


def _add(rows: dict[tuple[str, str], Record], record: Record) -> None:
    column = "letter" if record.values.get("letter") else "id"
    name = str(record.values.get(column) or "")
    if not name:
        raise UsageError(f"line {record.line} has no letter id: its column letter is empty or missing")
    earlier = rows.setdefault((column, name), record)
    if earlier.values != record.values:
        lines = f"lines {earlier.line} and {record.line}"
        raise UsageError(f"{lines} are both about the letter {name}: keep one of them")


def _cells(letter: Letter) -> dict[str, str]:
    """The letter's fields as cells, without fields that a cell cannot hold."""
    try:
        document = {} if letter.closed else parse_object(letter.delivery.body)
    except MalformedBody:
        document = {}
    attributes = document.get(ATTRIBUTES)
    fields = dict(attributes) if isinstance(attributes, dict) else {}
    fields[PLATFORM_NAME] = document.get(PLATFORM_NAME)
    cells = {ACCOUNT: letter.facts["accountId"] or ""}
    for name in (PLATFORM_NAME, *FIELDS):
        value = fields.get(name)
        if isinstance(value, bool):
            cells[name] = "true" if value else "false"
        elif isinstance(value, str | int):
            cells[name] = str(value)
    return cells


def _is_same(name: str, before: str, value: Any) -> bool:
    """Whether a cell is unchanged since the export."""
    if name in SECRET_FIELDS and value == MASK:
        return True
    cell = clean(before)
    if not isinstance(value, str):
        return bool(flag(cell) == value)
    return value == cell or is_rounded(cell, value)
