"""One record for each row of a table: its values by attribute, and its damage."""

import re
from collections.abc import Collection, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

from worker.contract.platforms import FLAG_FIELDS
from worker.errors import UsageError
from worker.files import csv_file
from worker.files.cells import KNOWN, clean, flag, known_in, plain
from worker.files.csv_file import HEADER_WITHIN, RawRow, dialect_of, header_in, is_header
from worker.files.damage import CELL_COUNT, Problem, SpoiltCell, damaged_values
from worker.files.source import Source, decode_sample, encoding_of
from worker.files.workbook import OLD_SIGNATURE, SIGNATURE, Workbook

_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|meta|table|\?xml|!--)", re.IGNORECASE)


class Record(NamedTuple):
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


class Table:
    """The table in a CSV file or a workbook, its rows to be read once. Titles above the header are passed
    over.

    `names` are what the columns hold, in their order: an attribute, `accountId`, one of the names in `also`,
    or the header's own words. `headers` are what the header calls the known ones, and `unknown` are the
    others: what they hold is left out, unless `keeps_unknown`. `delimiter` is the file's, a comma for a
    workbook.
    """

    def __init__(
        self,
        source: Source,
        *,
        encoding: str | None = None,
        sheet: str | None = None,
        also: Collection[str] = (),
        keeps_unknown: bool = False,
    ) -> None:
        """Raises UsageError for a file or a header that is of no use, Unreadable for text that cannot be
        read."""
        sample = source.sample()
        self.workbook, self.delimiter = None, ","
        if is_workbook(sample):
            self.workbook = Workbook(source.seekable(), sheet)
            rows = self.workbook.rows()
        elif sheet:
            raise UsageError("it has no sheets, being CSV: leave out --sheet")
        else:
            encoding = encoding or encoding_of(sample)
            dialect = dialect_of(decode_sample(sample, encoding))
            rows, self.delimiter = csv_file.rows_of(source.chunks(), encoding, dialect), dialect["delimiter"]
        header, below = _find_header(rows)
        self._rows = chain(below, rows)
        width = max((number for number, cell in enumerate(header, 1) if clean(cell)), default=0)
        self.header = header[:width]
        known = {**KNOWN, **{plain(name): name for name in also}}
        self.names = [known.get(plain(cell)) or clean(cell) for cell in self.header]
        self.headers: dict[str, str] = {}
        self.unknown: list[str] = []
        for name, cell in zip(self.names, map(clean, self.header), strict=True):
            if name in self.headers:
                other = self.headers[name]
                raise UsageError(f"the columns {other} and {cell} are both {name}: keep one of them")
            if name in known.values():
                self.headers[name] = cell
            elif name:
                self.unknown.append(name)
        self._kept = self.names if keeps_unknown else self.headers.keys()

    def __iter__(self) -> Iterator[Record]:
        """Each row that is not blank and does not repeat the header. Raises Unreadable where the file stops
        being readable."""
        fields = [(name if name in self._kept else "", name in FLAG_FIELDS) for name in self.names]
        width = len(fields)
        for row, line, cells in self._rows:
            if isinstance(cells, Problem):
                yield Record(row, line, [], {}, (cells,))
                continue
            values: dict[str, Any] = {}
            for cell, (name, is_flag) in zip(cells, fields, strict=False):
                if cell and name and (value := cell if isinstance(cell, SpoiltCell) else clean(cell)):
                    values[name] = flag(value) if is_flag else value
            surplus = len(cells) > width and any(map(clean, cells[width:]))
            if not (values or surplus or any(map(clean, cells))) or cells[:width] == self.header:
                continue
            if surplus or (len(cells) < width and self.workbook is None):
                # In a shifted row no cell can be assigned to an attribute, and no value may be shown.
                problems = [Problem(CELL_COUNT, remark=f"{len(cells)} cells, the header {width}")]
            else:
                problems = damaged_values(values, self.headers)
            yield Record(row, line, cells, values, tuple(problems))


def is_workbook(sample: bytes) -> bool:
    """Whether an input that begins like this is a workbook, whatever its name says. Raises UsageError for
    what is neither a workbook nor text."""
    if sample.startswith(OLD_SIGNATURE):
        raise UsageError("it is an old or protected workbook: save it as .xlsx, without a password")
    if _MARKUP.match(sample):
        raise UsageError("it is a web page that is named like a spreadsheet: open it and save it as .xlsx")
    return sample.startswith(SIGNATURE)


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
    if not known_in(header):
        raise UsageError(
            "no column has the name of an attribute (such as pageId): is the header line missing?"
        )
    return header, first[at + 1 :]


def _cells(row: RawRow) -> list[str]:
    return row[2] if isinstance(row[2], list) else []


def _is_not_blank(row: RawRow) -> bool:
    return isinstance(row[2], Problem) or any(map(clean, row[2]))
