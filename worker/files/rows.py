"""The rows of a job, from inputs in any format (contract §12)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Final

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import ATTRIBUTES, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS, SECRET_FIELDS
from worker.contract.registration import Registration, Rejection, validate
from worker.contract.words import MISSING
from worker.errors import UsageError
from worker.files.damage import ACCOUNT, Kind, Problem, shown, spreadsheet_marks
from worker.files.source import STANDARD_INPUT, Corrupt, Source, Unreadable, elements, encoding_of, lines
from worker.files.table import Record, Table, is_workbook
from worker.files.workbook import cell_name

# Columns that `submit --failed` adds. A file with all of them was written by `--failed`.
RETURNED: Final = ("error", "line", "row")

_INFOS = [info for platform in PLATFORMS.values() for info in platform.attributes.model_fields.values()]
_FIELD_OF: Final = {"OttPlatformName": PLATFORM_NAME} | {str(info.title): str(info.alias) for info in _INFOS}
_ALLOWED: Final = {
    ATTRIBUTES: "an object with the attributes of the platform",
    PLATFORM_NAME: " or ".join(PLATFORMS),
    **dict.fromkeys(FLAG_FIELDS, "true or false, yes or no, y or n, on or off, 1 or 0"),
}
_JSON_ENDINGS: Final = (".json", ".jsonl", ".ndjson")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Row:
    """One row. `place` is its number in the job, counted from 1 over the data rows of all inputs; a row from
    a `--failed` file keeps its number. `line` is where it begins in its `file`, and `shown_as` the number
    that a spreadsheet or editor shows.

    `document` is the row's registration; without it nothing can be sent, and `problems` say why. `raw` is a
    row of JSON, unchanged; `cells` are the raw cells of a `table`'s row. `true_at` is the request's
    `x-ott-as-of`, in microseconds since the epoch."""

    place: int
    file: str
    line: int
    shown_as: int
    document: Mapping[str, Any] | None = None
    raw: bytes = b""
    account_id: str | None = None
    problems: tuple[Problem, ...] = ()
    table: Table | None = None
    cells: list[str] | None = None
    true_at: int | None = None

    def where(self, name: str = "") -> str:
        """The position of the row, or of one of its attributes, in a spreadsheet or editor."""
        if self.table is None:
            return f"{self.file} line {self.line} (row {self.place})"
        if self.table.workbook is None:
            return f"{self.file} row {self.shown_as} (line {self.line})"
        names = self.table.names
        if name not in names:
            return f"{self.file} row {self.shown_as}"
        return f"{self.file} cell {cell_name(self.shown_as, names.index(name) + 1)}"

    def header(self, name: str) -> str:
        """The file's name for an attribute."""
        return self.table.headers.get(name, name) if self.table else name

    @cached_property
    def body(self) -> bytes:
        """The body to send. JSON is sent byte for byte."""
        if self.raw or self.document is None:
            return self.raw
        return _encode(self.document).encode(errors="surrogatepass")

    @cached_property
    def parsed(self) -> Registration | Rejection | None:
        """The result of validation, None if there is nothing to send."""
        return None if self.document is None else validate(self.document)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The registration's attributes, if they are an object."""
        attributes = self.document.get(ATTRIBUTES) if self.document else None
        return attributes if isinstance(attributes, dict) else {}

    def refusals(self, max_body_bytes: int) -> Iterator[Problem]:
        """The errors for which a worker would reject the row, with advice for the author of the file."""
        if self.document is not None and len(self.body) > max_body_bytes:
            what = f"The row is larger than {max_body_bytes} bytes."
            kind = Kind(what, "smaller rows", "Look for a missing quotation mark.", is_sentence=True)
            yield Problem(kind)
        for error in self.parsed.errors if isinstance(self.parsed, Rejection) else ():
            name = _FIELD_OF.get(error.message.partition(" ")[0], ATTRIBUTES)
            value, advice = "", "Enter one of the allowed values."
            if name == ATTRIBUTES:
                advice = f"Put the attributes into {ATTRIBUTES}."
            elif error.errorcode != MISSING:
                value = shown(name, {**(self.document or {}), **self.attributes}.get(name), self.secrets)
            elif self.table and name in self.table.headers:
                advice = "Fill in the cell."
            else:
                advice = f"Add {name}, and fill it in."
            kind = Kind(error.message, _ALLOWED.get(name, "a text"), advice, is_sentence=True)
            yield Problem(kind, name, self.header(name), value)

    @property
    def platform(self) -> str | None:
        """The row's platform, None if it has none or an unknown one."""
        return self.parsed.platform if self.parsed else None

    @property
    def resource_id(self) -> str | None:
        """The id of the row's page or channel."""
        return self.parsed.resource_id if self.parsed else None

    @property
    def secrets(self) -> list[str]:
        """The row's secret values, which no text may quote."""
        return [v for k, v in self.attributes.items() if k in SECRET_FIELDS and isinstance(v, str) and v]

    @property
    def shown_id(self) -> str | None:
        """The resource's id, unless it is damaged: then it may be a secret in the wrong column."""
        return None if any(problem.spoils_id for problem in self.problems) else self.resource_id


@dataclass(frozen=True)
class Reading:
    """What to read, and how. `platform` is for rows without one. Columns without an attribute are left out
    unless `send_unknown`. `as_of` is when the rows were true (microseconds since the epoch); 0 sends no time,
    and None uses the file's. `failed` is the file for failed rows."""

    paths: tuple[str, ...]
    platform: str | None = None
    encoding: str | None = None
    sheet: str | None = None
    send_unknown: bool = False
    as_of: int | None = None
    failed: Path | None = None
    tables: dict[str, Table] = field(default_factory=dict, compare=False)
    """The opened tables, by file name."""
    opened: dict[str, int] = field(default_factory=dict, compare=False)
    """The time of each file's last change when it was first opened. A later change ends the job."""

    @cached_property
    def rereadable(self) -> bool:
        """Whether every input can be read more than once. Reading reports a missing one."""
        files = [Path(path) for path in self.paths if path != STANDARD_INPUT]
        return len(files) == len(self.paths) and all(path.is_file() or not path.exists() for path in files)

    def rows(self) -> Iterator[Row]:
        """All rows, in order, one at a time. Raises UsageError for an unusable input, Unreadable if an input
        becomes unreadable, or Corrupt."""
        numbers = count(1)
        for path in self.paths:
            place = 0
            with Source(path, self.opened) as source:
                try:
                    for row in self._rows(source, numbers):
                        place = row.place
                        yield row
                except (Unreadable, Corrupt) as error:
                    where = f"after row {place}" if place else "at its beginning"
                    raise type(error)(f"{source.name} cannot be read {where}: {error}") from None
                except UsageError as error:
                    raise UsageError(f"{source.name}: {error}") from None

    def _rows(self, source: Source, numbers: Iterator[int]) -> Iterator[Row]:
        sample = source.sample()
        if not sample.strip():
            return
        encoding = self.encoding or encoding_of(sample)
        ending = PurePath(source.path.lower().removesuffix(".gz")).suffix
        beginning = sample.decode(encoding, "replace").lstrip("\ufeff \t\r\n")[:1]
        is_json = beginning in ("[", "{") or ending in (".jsonl", ".ndjson")
        is_table = is_workbook(sample) or ending in (".csv", ".tsv") or not is_json
        if self.failed and is_table == (self.failed.suffix.lower() in _JSON_ENDINGS):
            raise UsageError("--failed gives rows of a table back as CSV or .xlsx, rows of JSON as .jsonl")
        if is_table:
            yield from self._table_rows(source, numbers)
            return
        # Bytes that are not text become an error of their row.
        errors, chunks = "surrogateescape", source.chunks()
        texts = (
            elements(chunks, encoding) if beginning == "[" else enumerate(lines(chunks, encoding, errors), 1)
        )
        for line, text in texts:
            if body := text.strip().encode(errors=errors):
                yield self._json_row(line, body, source, next(numbers))

    def _table_rows(self, source: Source, numbers: Iterator[int]) -> Iterator[Row]:
        table = Table(
            source,
            encoding=self.encoding,
            sheet=self.sheet,
            also=RETURNED,
            keeps_unknown=self.send_unknown,
        )
        if table.names and PLATFORM_NAME not in table.names and self.platform is None:
            options = " or ".join(f"--platform {name}" for name in PLATFORMS)
            raise UsageError(f"the column {PLATFORM_NAME} is missing: use {options}, or add the column")
        self.tables[source.name] = table
        if table.workbook and table.workbook.saved_at:
            source.changed_at = table.workbook.saved_at
        for record in table:
            yield self._table_row(record, table, source, next(numbers))

    def _table_row(self, record: Record, table: Table, source: Source, number: int) -> Row:
        document, values = None, record.values
        returned = {name: values.pop(name, None) for name in RETURNED}
        account = values.pop(ACCOUNT, None)
        if record.cells:
            platform = values.pop(PLATFORM_NAME, self.platform)
            document = {} if platform is None else {PLATFORM_NAME: platform}
            document[ATTRIBUTES] = values
        # A column named row counts only together with the other two.
        returned_as = str(returned["row"]) if table.headers.keys() >= set(RETURNED) else ""
        return Row(
            int(returned_as) if returned_as.isdecimal() else number,
            source.name,
            record.line,
            record.row,
            document,
            account_id=account,
            problems=record.problems,
            table=table,
            cells=record.cells,
            true_at=self._true_at(source),
        )

    def _json_row(self, line: int, body: bytes, source: Source, number: int) -> Row:
        place, raw, document = number, body, None
        try:
            document = parse_object(body)
        except MalformedBody as error:
            fault = str(error).replace("The body", "The row")
            advice = "Correct the JSON, or export the row again."
            kind = Kind(fault, "one JSON object for each row", advice, is_sentence=True)
            problems = [Problem(kind)]
        else:
            if document.keys() >= {"error", "line"}:
                place = document["row"] if type(document.get("row")) is int else number
                raw, document = b"", {k: v for k, v in document.items() if k not in RETURNED}
            if self.platform and document.get(PLATFORM_NAME) in (None, ""):
                others = {k: v for k, v in document.items() if k != PLATFORM_NAME}
                raw, document = b"", {PLATFORM_NAME: self.platform, **others}
            attributes = document.get(ATTRIBUTES)
            problems = spreadsheet_marks(attributes) if isinstance(attributes, dict) else []
        about = (place, source.name, line, line, document, raw)
        return Row(*about, problems=tuple(problems), true_at=self._true_at(source))

    def _true_at(self, source: Source) -> int | None:
        return source.changed_at if self.as_of is None else self.as_of or None


@dataclass(slots=True)
class Group:
    """The number of rows of one kind, and the positions of the first ones."""

    most: int = 5  # positions that are kept
    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Count a row."""
        self.count += 1
        if len(self.places) < self.most:
            self.places.append(place)

    def __str__(self) -> str:
        return ", ".join(self.places) + more(self.count, self.most)


def more(count: int, named: int) -> str:
    """The text after the first `named` of `count` items: ` and 3 more`."""
    return f" and {count - named:,} more" if count > named else ""
