"""The rows of a job, from its inputs in whatever format they are (contract §12)."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from itertools import count
from pathlib import Path, PurePath
from typing import Any, Final

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import ATTRIBUTES, PLATFORM_NAME, PLATFORMS, SECRET_FIELDS
from worker.contract.registration import Registration, Rejection, validate
from worker.errors import UsageError
from worker.files import json_rows
from worker.files.cells import printable
from worker.files.damage import ACCOUNT, CELL_COUNT, RESOURCE_IDS, ROUNDED, Problem, spreadsheet_marks
from worker.files.source import STANDARD_INPUT, Source, Unreadable, decode_sample, encoding_of, lines
from worker.files.table import RETURNED, Record, Table, check_kind, is_workbook, open_table
from worker.files.workbook import Workbook, cell_name

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Format(StrEnum):
    """How an input is written."""

    CSV = "csv"
    XLSX = "xlsx"
    JSON_LINES = "jsonl"
    JSON = "json"


_BY_ENDING: Final = {
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
}


@dataclass(frozen=True)
class Row:
    """One row. `number` counts from 1 over the data rows of all inputs, `line` in its `file`; `read` is how
    many bytes of all inputs had been read by then.

    `document` is the registration that the row asks for; without one nothing can be sent. `fault` is why a
    row of JSON holds none, `problems` are what is damaged. `raw` is a row of JSON as the file has it; of a
    `table`'s row, `cells` are what stands there, and `shown_as` is its number in a spreadsheet. `returned_as`
    is the number that it had in the job that gave it back (`--failed`). `true_at` is when the file says so.
    """

    number: int
    read: int
    file: str
    line: int
    document: Mapping[str, Any] | None = None
    raw: bytes = b""
    account_id: str | None = None
    fault: str = ""
    problems: tuple[Problem, ...] = ()
    table: Table | None = None
    cells: list[str] | None = None
    shown_as: int = 0
    returned_as: int | None = None
    true_at: int | None = None

    def header(self, name: str) -> str:
        """What the file calls an attribute."""
        return self.table.columns.headers.get(name, name) if self.table else name

    @property
    def place(self) -> int:
        """Its number in the job: the one that it had when `--failed` gave it back, else its number here."""
        return self.returned_as or self.number

    @property
    def at(self) -> str:
        """The number that a spreadsheet or an editor shows beside the row."""
        return str(self.shown_as or self.line)

    def where(self, name: str = "") -> str:
        """The place of the row, or of one of its attributes, as a spreadsheet or an editor shows it."""
        if self.table is None:
            return f"{self.file} line {self.line} (row {self.number})"
        if self.table.workbook is None:
            return f"{self.file} row {self.shown_as} (line {self.line})"
        names = self.table.columns.names
        if name not in names:
            return f"{self.file} row {self.shown_as}"
        return f"{self.file} cell {cell_name(self.shown_as, names.index(name) + 1)}"

    @cached_property
    def body(self) -> bytes:
        """The body to send. JSON is sent byte for byte as the file has it."""
        if self.raw or self.document is None:
            return self.raw
        return _encode(self.document).encode(errors="surrogatepass")

    @cached_property
    def parsed(self) -> Registration | Rejection | None:
        """What a worker would make of it, None where there is nothing to send."""
        return None if self.document is None else validate(self.document)

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The registration's attributes, if they are an object."""
        attributes = self.document.get(ATTRIBUTES) if self.document else None
        return attributes if isinstance(attributes, dict) else {}

    @property
    def platform(self) -> str | None:
        """The platform that the row is for, None if it names none or an unknown one."""
        return self.parsed.platform if self.parsed else None

    @property
    def resource_id(self) -> str | None:
        """The page or channel that the row is for."""
        return self.parsed.resource_id if self.parsed else None

    @property
    def secrets(self) -> list[str]:
        """The row's secret values, which no text may hold."""
        return [v for k, v in self.attributes.items() if k in SECRET_FIELDS and isinstance(v, str) and v]

    @property
    def shown_id(self) -> str | None:
        """The resource's id, unless it is damaged: then it may as well be a secret in the wrong place."""
        doubtful = any(
            problem.kind is CELL_COUNT or (problem.field in RESOURCE_IDS and problem.kind is not ROUNDED)
            for problem in self.problems
        )
        return None if doubtful else self.resource_id


@dataclass(frozen=True)
class Reading:
    """What to read, and how. `platform` is for rows that name none; columns that hold no attribute are left
    out unless `send_unknown`. `as_of` is when the rows were true (microseconds since the epoch), 0 for rows
    that do not tell, None for the time of the file itself."""

    paths: tuple[str, ...]
    platform: str | None = None
    format: Format | None = None
    encoding: str | None = None
    sheet: str | None = None
    send_unknown: bool = False
    as_of: int | None = None
    tables: dict[str, Table] = field(default_factory=dict, compare=False)
    """Each table that has been opened, by its path: its columns and its delimiter."""

    def rows(self) -> Iterator[Row]:
        """All rows, in order, one held at a time. Raises UsageError for an unusable input, and
        Unreadable for one that breaks off."""
        numbers = count(1)
        read = 0
        for path in self.paths:
            with Source(path) as source:
                yield from self._rows(source, numbers, read)
                read += source.read

    @cached_property
    def rereadable(self) -> bool:
        """Whether every input can be read more than once."""
        return all(path != STANDARD_INPUT and Path(path).is_file() for path in self.paths)

    def probe(self) -> None:
        """Look at the beginning of every file. Raises UsageError for one that is missing or of no use, or
        that lacks what would tell the platform of its rows."""
        for path in self.paths:
            # What a pipe has given once it does not give again.
            if path != STANDARD_INPUT and (Path(path).is_file() or not Path(path).exists()):
                with Source(path) as source, contextlib.suppress(Unreadable):
                    next(self._rows(source, count(1), 0), None)
        for path, table in self.tables.items():
            names = table.columns.names
            if names and PLATFORM_NAME not in names and self.platform is None:
                options = " or ".join(f"--platform {name}" for name in PLATFORMS)
                raise UsageError(
                    f"{printable(path)}: no column {PLATFORM_NAME} tells the platform of its rows: "
                    f"give {options}, or add the column"
                )

    def _rows(self, source: Source, numbers: Iterator[int], before: int) -> Iterator[Row]:
        number = 0
        try:
            for row in self._of_any_format(source, numbers, before):
                number = row.number
                yield row
        except Unreadable as error:
            where = f"after row {number}" if number else "at its beginning"
            raise Unreadable(f"{source.name} cannot be read {where}: {error}") from None
        except UsageError as error:
            raise UsageError(f"{source.name}: {error}") from None

    def _of_any_format(self, source: Source, numbers: Iterator[int], before: int) -> Iterator[Row]:
        sample = source.sample()
        chosen = self.format or format_of(source.path, sample)
        if not sample.strip():
            return
        if chosen in (Format.CSV, Format.XLSX):
            table = open_table(
                source, encoding=self.encoding, sheet=self.sheet, also=RETURNED, unknown=self.send_unknown
            )
            self.tables[source.path] = table
            for record in table:
                yield self._table_row(record, table, source, next(numbers), before)
            return
        encoding = self.encoding or encoding_of(sample)
        chunks = source.chunks()
        if encoding != "utf-8":  # which stays as it is, byte for byte
            chunks = (line.encode(errors="surrogatepass") for line in lines(chunks, encoding))
        if chosen is Format.JSON_LINES:
            bodies = json_rows.lines(chunks)
        else:
            in_array = decode_sample(sample, encoding).lstrip()[:1] == "["
            bodies = json_rows.values(chunks, in_array=in_array)
        for line, body in bodies:
            yield self._json_row(line, body, source, next(numbers), before)

    def _table_row(self, record: Record, table: Table, source: Source, number: int, before: int) -> Row:
        document, values = None, record.values
        # A column called row means nothing by itself.
        is_back = set(RETURNED) <= set(table.columns.names)
        returned_as = str(values.get("row", "")) if is_back else ""
        account = values.pop(ACCOUNT, None)
        if record.cells:
            platform = values.pop(PLATFORM_NAME, self.platform)
            for name in RETURNED:
                values.pop(name, None)
            document = {} if platform is None else {PLATFORM_NAME: platform}
            document[ATTRIBUTES] = values
        return Row(
            number,
            before + source.read,
            source.name,
            record.line,
            document,
            account_id=account,
            problems=record.problems,
            table=table,
            cells=record.cells,
            shown_as=record.row,
            returned_as=int(returned_as) if returned_as.isdecimal() else None,
            true_at=self._true_at(source, table.workbook),
        )

    def _json_row(self, line: int, body: bytes, source: Source, number: int, before: int) -> Row:
        row = Row(number, before + source.read, source.name, line, raw=body, true_at=self._true_at(source))
        try:
            document = parse_object(body)
        except MalformedBody as error:
            return replace(row, fault=str(error).replace("The body", "The row"))
        returned_as = None
        if document.keys() >= {"error", "line"}:
            returned_as = document.get("row")
            body, document = b"", {k: v for k, v in document.items() if k not in RETURNED}
        if self.platform and document.get(PLATFORM_NAME) in (None, ""):
            others = {k: v for k, v in document.items() if k != PLATFORM_NAME}
            body, document = b"", {PLATFORM_NAME: self.platform, **others}
        returned_as = returned_as if type(returned_as) is int else None
        row = replace(row, document=document, raw=body, returned_as=returned_as)
        return replace(row, problems=tuple(spreadsheet_marks(row.attributes)))

    def _true_at(self, source: Source, workbook: Workbook | None = None) -> int | None:
        """`--as-of`, else when the workbook was saved, else when the file was changed."""
        if self.as_of is not None:
            return self.as_of or None
        return (workbook and workbook.saved_at) or source.changed_at


def format_of(path: str, sample: bytes) -> Format:
    """By what the file is, then by its ending, else by how it begins. Raises UsageError where they contradict
    each other."""
    check_kind(sample)
    if is_workbook(sample):
        return Format.XLSX
    ending = PurePath(path.lower().removesuffix(".gz")).suffix
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    beginning = decode_sample(sample, encoding_of(sample)).strip()
    if beginning.startswith("["):
        return Format.JSON
    if beginning.startswith("{"):
        return Format.JSON_LINES if beginning.partition("\n")[0].rstrip().endswith("}") else Format.JSON
    if beginning and ending == ".json":
        raise UsageError("it is neither a JSON array nor JSON objects: name its --format, or rename it")
    return Format.CSV
