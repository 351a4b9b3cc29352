"""Tables: rows of CSV, whose delimiter and quoting are detected, and a record for each row of a table in any
format: its values by attribute, and its damage (contract §12)."""

import contextlib
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice, product
from typing import Any, Final, NamedTuple

from worker.contract.platforms import FLAG_FIELDS
from worker.errors import UsageError
from worker.files.cells import KNOWN, RawRow, clean, flag, known_in, plain
from worker.files.damage import CELL_COUNT, QUOTING, Problem, SpoiltCell, damaged_values
from worker.files.source import Source, Unreadable, encoding_of, lines
from worker.files.workbook import OLD_SIGNATURE, SIGNATURE, Workbook

HEADER_WITHIN: Final = 20  # rows; titles may precede the header
SAMPLE_ROWS: Final = 20

_IN_QUOTES = re.compile(r'\s*"(.*)"\s*\Z')
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|meta|table|\?xml|!--)", re.IGNORECASE)
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*\Z', re.IGNORECASE)

Dialect = Mapping[str, Any]
"""How a file separates and quotes its cells: parameters of `csv.reader`, and `in_quotes`: whether each whole
line is in quotation marks."""


class Record(NamedTuple):
    """One row: its number in a spreadsheet, and the line on which it begins in the file (in a workbook, the
    same). `cells` are raw; `values` are clean, by attribute, with JSON flags and without empty cells. With
    `problems` they must not be trusted."""

    row: int
    line: int
    cells: list[str]
    values: dict[str, Any]
    problems: tuple[Problem, ...] = ()


class Table:
    """The table in a CSV file or a workbook. Its rows can be read once. Titles above the header are skipped.

    `names` are the columns in order: an attribute, `accountId`, one of the names in `also`, or the header's
    own text. `headers` maps the known ones to the header's text, and `unknown` are the others; their values
    are left out unless `keeps_unknown`. `delimiter` is the file's, a comma for a workbook."""

    def __init__(
        self,
        source: Source,
        *,
        encoding: str | None = None,
        sheet: str | None = None,
        also: Collection[str] = (),
        keeps_unknown: bool = False,
    ) -> None:
        """Raises UsageError for an unusable file or header, and Unreadable for text that cannot be read."""
        sample = source.sample()
        self.workbook, self.delimiter = None, ","
        if is_workbook(sample):
            self.workbook = Workbook(source.seekable(), sheet)
            rows = self.workbook.rows()
        elif sheet:
            raise UsageError("a CSV file has no sheets: leave out --sheet")
        else:
            encoding = encoding or encoding_of(sample)
            dialect = dialect_of(sample.decode(encoding, "replace"))
            rows, self.delimiter = csv_rows(source.chunks(), encoding, dialect), dialect["delimiter"]
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
        """Each row that is not blank and does not repeat the header. Raises Unreadable if the file becomes
        unreadable."""
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
                # In a shifted row the cells' attributes are unknown, so no value may be shown.
                problems = [Problem(CELL_COUNT, remark=f"{len(cells)} cells, the header {width}")]
            elif self.workbook is None and any(
                "\n" in cell and cell.count(self.delimiter) >= width - 1 for cell in cells
            ):  # what follows it in the row belongs to another one
                problems = [Problem(QUOTING, remark="a cell holds whole rows")]
            else:
                problems = damaged_values(values, self.headers)
            yield Record(row, line, cells, values, tuple(problems))


def is_workbook(sample: bytes) -> bool:
    """Whether an input that begins like this is a workbook, whatever its name. Raises UsageError if it is
    neither a workbook nor text."""
    if sample.startswith(OLD_SIGNATURE):
        raise UsageError("it is an old or protected workbook: save it as .xlsx, without a password")
    if _MARKUP.match(sample):
        raise UsageError("it is a web page that is named like a spreadsheet: open it and save it as .xlsx")
    return sample.startswith(SIGNATURE)


def _find_header(rows: Iterator[RawRow]) -> tuple[list[str], list[RawRow]]:
    """The header, and the rows below it that were read to find it. It reads no more than needed, because rows
    of standard input may arrive one by one."""
    first = []
    for row in islice(filter(_is_not_blank, rows), HEADER_WITHIN):
        first.append(row)
        cells = _cells(row)
        known = known_in(cells)
        if known > 1 or (known == 1 and len(list(filter(clean, cells))) == 1):  # certainly the header
            return cells, []
    if not first:
        return [], []
    at = _header_in(list(map(_cells, first)))
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


def csv_rows(chunks: Iterable[bytes], encoding: str, dialect: Dialect) -> Iterator[RawRow]:
    """Each row of the file. Raises Unreadable if the text becomes unreadable."""
    text = lines(chunks, encoding)
    first = next(text, "")
    above = int(_separator_in(first) is not None)  # the line `sep=;`, which a spreadsheet does not show
    reader = reader_of(text if above else chain([first], text), **dialect)
    for number in count(1):
        begins = above + reader.line_num + 1
        cells: list[str] | Problem | None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "limit" in str(error) or "unexpected end" in str(error):
                ends = above + reader.line_num
                where = f"line {begins}" if ends <= begins else f"lines {begins} to {ends}"
                raise Unreadable(f"a cell in {where} does not end: is a quotation mark missing?") from None
            cells = Problem(QUOTING)
        if cells is None:
            return
        yield number, begins, cells


def reader_of(text: Iterable[str], *, in_quotes: bool = False, **parameters: Any) -> Any:
    """A `csv.reader` in this dialect."""
    return csv.reader(map(_out_of_quotes, text) if in_quotes else text, **parameters)


def _out_of_quotes(line: str) -> str:
    found = _IN_QUOTES.match(line.lstrip("\ufeff"))
    return found[1].replace('""', '"') + "\n" if found else line


def line_of(cells: Iterable[object], delimiter: str = ",", end: str = "\n") -> bytes:
    """One line of CSV, in UTF-8."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerow(cells)
    return text.getvalue().encode(errors="replace")


def dialect_of(text: str) -> Dialect:
    """The dialect of a `sep=` line, else the one in which the header has most attributes and most rows fit
    the header."""
    delimiters = _separator_in(text.partition("\n")[0]) or ",;\t|"
    quotes = '"' if '"' in text else "\"'"
    escapes = (None, "\\") if '\\"' in text else (None,)
    names = ("delimiter", "quotechar", "escapechar", "skipinitialspace")
    candidates = product(delimiters, quotes, escapes, (False, True))
    dialects: list[Dialect] = [dict(zip(names, each, strict=True), strict=True) for each in candidates]
    if all(map(_IN_QUOTES.match, text.lstrip("\ufeff").splitlines()[:-1])):
        dialects += [{"delimiter": each, "strict": True, "in_quotes": True} for each in delimiters]
    return max(dialects, key=lambda dialect: _fitness(text, dialect))


def _separator_in(line: str) -> str | None:
    """The delimiter, if this is a line such as `sep=;` for spreadsheets."""
    found = _SEPARATOR_LINE.match(line.lstrip("\ufeff"))
    return found and found[1]


def _header_in(rows: Sequence[Sequence[str]]) -> int:
    """The index of the header among the first rows: the row with most attributes."""
    return max(range(len(rows)), key=lambda at: known_in(rows[at]), default=0)


def _fitness(text: str, dialect: Dialect) -> tuple[int, int, int]:
    """The number of attributes in the header, of rows as long as it, and (negative) of left-over quotes."""
    complete, _, _ = text.rpartition("\n")
    sample = (complete or text).splitlines(keepends=True)
    reader = reader_of(sample, **dialect)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(islice(filter(any, reader), HEADER_WITHIN + SAMPLE_ROWS))
    if not rows:
        return 0, 0, 0
    at = _header_in(rows[:HEADER_WITHIN])
    header, body = rows[at], rows[at + 1 :]
    fitting = sum(len(row) == len(header) for row in body)
    left_over = sum(len(cell) > 1 and cell[0] == cell[-1] in "\"'" for row in body for cell in row)
    return known_in(header), fitting, -left_over
