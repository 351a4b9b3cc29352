"""One record for each row of a table: its values by attribute, and its damage."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from worker.errors import UsageError
from worker.tables import csv_file, workbook
from worker.tables.cells import clean, flag
from worker.tables.columns import FLAG_FIELDS, Columns, columns_of, known_in
from worker.tables.csv_file import HEADER_WITHIN, RawRow, dialect_of, header_in, is_header
from worker.tables.damage import CELL_COUNT, Problem, damaged_values
from worker.tables.source import Source
from worker.tables.text import decode_sample, encoding_of

# Columns that `submit --failed` adds. Both together mark a file that has come back.
RETURNED: Final = ("error", "line")

_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|meta|table|\?xml|!--)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One row. `line` is where it begins in the file, or its number in the sheet; `cells` are as they came.

    `values` are clean and by attribute, with flags as JSON has them and without empty cells. With `problems`
    they must not be trusted.
    """

    line: int
    cells: list[str]
    values: dict[str, Any]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A header and the rows below it, to be read once. `delimiter` is the file's, a comma for a workbook."""

    columns: Columns
    delimiter: str
    _rows: Iterable[RawRow]
    _ragged: bool
    _unknown: bool

    def __iter__(self) -> Iterator[Record]:
        """Each row that is not blank and does not repeat the header. Raises Unreadable where the file stops
        being readable."""
        header = list(self.columns.header)
        wanted = self.columns.known if not self._unknown else set(self.columns.names)
        fields = [(name if name in wanted else "", name in FLAG_FIELDS) for name in self.columns.names]
        headers = self.columns.headers
        width = len(fields)
        for line, cells in self._rows:
            if isinstance(cells, Problem):
                yield Record(line, [], {}, (cells,))
                continue
            values: dict[str, Any] = {}
            for cell, (name, is_flag) in zip(cells, fields, strict=False):
                if cell and name and (value := clean(cell)):
                    values[name] = flag(value) if is_flag else value
            surplus = len(cells) > width and any(map(clean, cells[width:]))
            if not (values or surplus or any(map(clean, cells))) or cells[:width] == header:
                continue
            problems = damaged_values(values, headers)
            if surplus or (len(cells) < width and not self._ragged):
                # In a shifted row no cell can be assigned to an attribute, and no value may be shown.
                count = f"{len(cells)} cells, the header {width}"
                problems = [Problem(CELL_COUNT, remark=count)]
            yield Record(line, cells, values, tuple(problems))


def open_table(
    source: Source,
    *,
    encoding: str | None = None,
    sheet: str | None = None,
    also: Collection[str] = (),
    unknown: bool = False,
) -> Table:
    """The table in a CSV file or a workbook. Titles above the header are passed over.

    `also` names columns besides the attributes that the caller knows; what other columns hold is left out
    unless `unknown`. Raises UsageError for a file or a header that is of no use, Unreadable for text that
    cannot be read.
    """
    sample = source.sample()
    check_kind(sample)
    packed, delimiter = is_workbook(sample), ","
    if packed:
        rows = workbook.rows_of(source.seekable(), sheet)
    else:
        if sheet:
            raise UsageError("it has no sheets, being CSV: leave out --sheet")
        encoding = encoding or encoding_of(sample)
        dialect = dialect_of(decode_sample(sample, encoding))
        rows, delimiter = csv_file.rows_of(source.chunks(), encoding, dialect), dialect.delimiter
    header, below = _find_header(rows)
    return Table(columns_of(header, also), delimiter, chain(below, rows), packed, unknown)


def is_workbook(sample: bytes) -> bool:
    """Whether an input that begins like this is a workbook, whatever its name says."""
    return sample.startswith(workbook.SIGNATURE)


def check_kind(sample: bytes) -> None:
    """Raises UsageError for what is neither text nor a workbook, whatever its name says."""
    if sample.startswith(workbook.OLD_SIGNATURE):
        raise UsageError("it is an old or protected workbook: save it as .xlsx, without a password")
    if _MARKUP.match(sample):
        raise UsageError("it is a web page that is named like a spreadsheet: open it and save it as .xlsx")


def _find_header(rows: Iterator[RawRow]) -> tuple[list[str], list[RawRow]]:
    """The header, and the rows below it that were read to find it. No more is read than is needed: rows of
    standard input may come one by one."""
    first = []
    for row in islice(filter(_is_not_blank, rows), HEADER_WITHIN):
        first.append(row)
        if is_header(_cells(row)):
            return _cells(row), []
    if not first:
        return [], []
    at = header_in(list(map(_cells, first)))
    header = _cells(first[at])
    if not header:
        raise UsageError("the header line is missing or broken: name the attributes in the first line")
    if not known_in(header):
        raise UsageError(
            "no column has the name of an attribute (such as pageId): is the header line missing?"
        )
    return header, first[at + 1 :]


def _cells(row: RawRow) -> list[str]:
    return row[1] if isinstance(row[1], list) else []


def _is_not_blank(row: RawRow) -> bool:
    return isinstance(row[1], Problem) or any(map(clean, row[1]))
