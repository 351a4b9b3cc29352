"""One record for each row of a table: its values by attribute, and its damage."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from worker.contract.platforms import FLAG_FIELDS
from worker.errors import UsageError
from worker.files import csv_file
from worker.files.cells import Columns, clean, columns_of, flag, known_in
from worker.files.csv_file import HEADER_WITHIN, RawRow, dialect_of, header_in, is_header
from worker.files.damage import CELL_COUNT, Problem, damaged_values, spoilt_cells
from worker.files.source import Source, decode_sample, encoding_of
from worker.files.workbook import OLD_SIGNATURE, SIGNATURE, Workbook

# Columns that `submit --failed` adds. Both together mark a file that has come back.
RETURNED: Final = ("error", "line", "row")

_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|meta|table|\?xml|!--)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its number as a spreadsheet shows it, and the line on which it begins in the file (of a
    workbook, the same); `cells` are as they came.

    `values` are clean and by attribute, with flags as JSON has them and without empty cells. With `problems`
    they must not be trusted.
    """

    row: int
    line: int
    cells: list[str]
    values: dict[str, Any]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A header and the rows below it, to be read once. `delimiter` is the file's, a comma for a workbook."""

    columns: Columns
    delimiter: str
    workbook: Workbook | None
    _rows: Iterable[RawRow]
    _unknown: bool

    def __iter__(self) -> Iterator[Record]:
        """Each row that is not blank and does not repeat the header. Raises Unreadable where the file stops
        being readable."""
        header = list(self.columns.header)
        wanted = self.columns.known if not self._unknown else set(self.columns.names)
        fields = [(name if name in wanted else "", name in FLAG_FIELDS) for name in self.columns.names]
        headers = self.columns.headers
        width = len(fields)
        for row, line, cells in self._rows:
            if isinstance(cells, Problem):
                yield Record(row, line, [], {}, (cells,))
                continue
            values: dict[str, Any] = {}
            for cell, (name, is_flag) in zip(cells, fields, strict=False):
                if cell and name and (value := clean(cell)):
                    values[name] = flag(value) if is_flag else value
            surplus = len(cells) > width and any(map(clean, cells[width:]))
            if not (values or surplus or any(map(clean, cells))) or cells[:width] == header:
                continue
            problems = spoilt_cells(zip(cells, self.columns.names, strict=False), headers)
            spoilt = {problem.field for problem in problems}
            problems += [each for each in damaged_values(values, headers) if each.field not in spoilt]
            if surplus or (len(cells) < width and self.workbook is None):
                # In a shifted row no cell can be assigned to an attribute, and no value may be shown.
                count = f"{len(cells)} cells, the header {width}"
                problems = [Problem(CELL_COUNT, remark=count)]
            yield Record(row, line, cells, values, tuple(problems))


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
    workbook, delimiter = None, ","
    if is_workbook(sample):
        workbook = Workbook(source.seekable(), sheet)
        rows = workbook.rows()
    else:
        if sheet:
            raise UsageError("it has no sheets, being CSV: leave out --sheet")
        encoding = encoding or encoding_of(sample)
        dialect = dialect_of(decode_sample(sample, encoding))
        rows, delimiter = csv_file.rows_of(source.chunks(), encoding, dialect), dialect["delimiter"]
    header, below = _find_header(rows)
    return Table(columns_of(header, also), delimiter, workbook, chain(below, rows), unknown)


def is_workbook(sample: bytes) -> bool:
    """Whether an input that begins like this is a workbook, whatever its name says."""
    return sample.startswith(SIGNATURE)


def check_kind(sample: bytes) -> None:
    """Raises UsageError for what is neither text nor a workbook, whatever its name says."""
    if sample.startswith(OLD_SIGNATURE):
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
    return row[2] if isinstance(row[2], list) else []


def _is_not_blank(row: RawRow) -> bool:
    return isinstance(row[2], Problem) or any(map(clean, row[2]))
