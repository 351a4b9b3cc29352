"""Rows of cells from CSV text: delimiter and quoting are found out (contract §12)."""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice, product
from typing import Any, Final

from worker.files.cells import clean, known_in
from worker.files.damage import QUOTING, Problem
from worker.files.source import Unreadable, lines

HEADER_WITHIN: Final = 20  # rows; titles may stand above the header
SAMPLE_ROWS: Final = 20

_IN_QUOTES = re.compile(r'\s*"(.*)"\s*\Z')
_SPACED_QUOTE = re.compile('[,;\t|] +"')
_SEPARATOR_LINE = re.compile(r'\s*"?sep=(.)"?\s*\Z', re.IGNORECASE)

RawRow = tuple[int, int, list[str] | Problem]
"""The row's number as a spreadsheet shows it, the line on which it begins, and its cells as they came or what
keeps them from being read."""


Dialect = Mapping[str, Any]
"""How one file separates and quotes its cells: parameters of `csv.reader`, and whether each line is in
quotation marks as a whole, `in_quotes`."""


def rows_of(chunks: Iterable[bytes], encoding: str, dialect: Dialect) -> Iterator[RawRow]:
    """Each row of the file. Raises Unreadable where the text stops being readable."""
    text = lines(chunks, encoding)
    first = next(text, "")
    above = int(_separator_in(first) is not None)  # a line that a spreadsheet does not show
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
    """The dialect that a `sep=` line names, else that in which the header names most attributes and the rows
    fit it best."""
    delimiters = _separator_in(text.partition("\n")[0]) or ",;\t|"
    spaces = [False, True] if _SPACED_QUOTE.search(text) else [False]
    dialects: list[Dialect] = [
        {"delimiter": delimiter, "skipinitialspace": space, "strict": True}
        for delimiter, space in product(delimiters, spaces)
    ]
    if all(map(_IN_QUOTES.match, text.lstrip("\ufeff").splitlines()[:-1])):
        dialects += [{"delimiter": each, "strict": True, "in_quotes": True} for each in delimiters]
    return max(dialects, key=lambda dialect: _fitness(text, dialect))


def _separator_in(line: str) -> str | None:
    """The delimiter, if this is the line that tells it to a spreadsheet: `sep=;`."""
    found = _SEPARATOR_LINE.match(line.lstrip("\ufeff"))
    return found and found[1]


def is_header(cells: Sequence[str]) -> bool:
    """Whether this can be nothing else than the header."""
    known = known_in(cells)
    return known > 1 or (known == 1 and sum(map(bool, map(clean, cells))) == 1)


def header_in(rows: Sequence[Sequence[str]]) -> int:
    """Which of the first rows is the header: the one that names most attributes."""
    return max(range(len(rows)), key=lambda at: known_in(rows[at]), default=0)


def _fitness(text: str, dialect: Dialect) -> tuple[int, int, int]:
    """Attributes that the header names, rows as long as it, and (less is better) quotes left over."""
    complete, _, _ = text.rpartition("\n")
    sample = (complete or text).splitlines(keepends=True)
    reader = reader_of(sample, **dialect)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(islice(filter(any, reader), HEADER_WITHIN + SAMPLE_ROWS))
    if not rows:
        return 0, 0, 0
    at = header_in(rows[:HEADER_WITHIN])
    header, body = rows[at], rows[at + 1 :]
    fitting = sum(len(row) == len(header) for row in body)
    left_over = sum(len(cell) > 1 and cell[0] == cell[-1] == '"' for row in body for cell in row)
    return known_in(header), fitting, -left_over
