"""Rows of CSV input: the header names attributes; delimiter, quoting and encoding are recognised."""

import codecs
import contextlib
import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Any

from worker.bulk.source import Unreadable
from worker.contract.fields import is_flag
from worker.contract.registration import PLATFORMS
from worker.errors import UsageError

PLATFORM_COLUMN = "ottPlatformName"
ATTRIBUTES = "ottPlatformAttributes"
LONGEST_LINE = 1024 * 1024  # characters
SAMPLE_ROWS = 20

_INFOS = [info for platform in PLATFORMS.values() for info in platform.attributes.model_fields.values()]
FLAGS = frozenset(str(info.alias) for info in _INFOS if is_flag(info))
_KNOWN = {name.lower(): name for name in [PLATFORM_COLUMN, *(str(info.alias) for info in _INFOS)]}
_FLAG_VALUES: dict[str, bool | int] = {"true": True, "false": False, "0": 0, "1": 1}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Record = dict[str, Any] | str
"""One row: the registration that it asks for, or why it cannot be read."""


class Dialect(csv.Dialect):
    """How one file separates and quotes its cells."""

    doublequote = True
    lineterminator = "\n"
    quoting = csv.QUOTE_MINIMAL
    strict = True

    def __init__(self, delimiter: str, quotechar: str, escapechar: str | None) -> None:
        self.delimiter = delimiter
        self.quotechar = quotechar
        self.escapechar = escapechar
        super().__init__()


def encoding_of(sample: bytes) -> str:
    """The encoding that the byte order mark tells, else UTF-8."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if sample.startswith(mark)), "utf-8")


def dialect_of(text: str) -> Dialect:
    """The dialect in which the header names most attributes and the rows fit it best."""
    quotes = '"' if '"' in text else "\"'"
    escapes = [None, "\\"] if '\\"' in text else [None]
    candidates = [Dialect(*parts) for parts in product(",;\t|", quotes, escapes)]
    return max(candidates, key=lambda dialect: _fitness(text, dialect))


def records(chunks: Iterable[bytes], sample: bytes, encoding: str | None = None) -> Iterator[Record]:
    """Each row that is not blank. Raises UsageError for a header without a known attribute, Unreadable
    where the text cannot be read on."""
    encoding = encoding or encoding_of(sample)
    head = _decoded(sample, encoding)
    reader = csv.reader(_lines(chunks, encoding), dialect_of(head))
    rows = _rows(reader)
    columns = _columns(next(rows, None))
    for row in rows:
        yield row if isinstance(row, str) else _record(columns, row)


def _decoded(sample: bytes, encoding: str) -> str:
    try:
        return codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample)
    except UnicodeError:  # of UTF-16 and UTF-32 without a mark, which reading then tells
        return ""


def _rows(reader: Any) -> Iterator[list[str] | str]:
    """Rows that are not blank: their cells, or what is wrong with them."""
    while (row := _next(reader)) is not None:
        if isinstance(row, str) or any(row):
            yield row


def _next(reader: Any) -> list[str] | str | None:
    """The next row's cells, or what is wrong with its quoting, or None at the end."""
    first = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        lines = f"line {first}" if reader.line_num <= first else f"lines {first} to {reader.line_num}"
        if "limit" in str(error) or "unexpected end" in str(error):
            raise Unreadable(f"a cell in {lines} does not end: is a quotation mark missing?") from None
        return f"The quoting in {lines} of the file is broken."


def _columns(header: list[str] | str | None) -> list[str]:
    if header is None or isinstance(header, str):
        raise UsageError("the header line is missing or broken: name the attributes in the first line")
    names = [_name(cell) for cell in header]
    if not any(name.lower() in _KNOWN for name in names):
        raise UsageError(
            "no column has the name of an attribute (such as pageId): is the header line missing?"
        )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise UsageError(f"the column {twice} is there twice: keep one of them")
    return names


def _name(cell: str) -> str:
    bare = cell.strip().removeprefix(f"{ATTRIBUTES}.")
    return _KNOWN.get(bare.lower(), bare)


def _record(columns: list[str], cells: list[str]) -> Record:
    if any(cells[len(columns) :]):
        return f"The row has {len(cells)} cells, but the header {len(columns)}."
    given = {name: _value(name, cell) for name, cell in zip(columns, cells, strict=False) if name and cell}
    platform = given.pop(PLATFORM_COLUMN, None)
    registration: dict[str, Any] = {} if platform is None else {PLATFORM_COLUMN: platform}
    return {**registration, ATTRIBUTES: given}


def _value(name: str, cell: str) -> str | bool | int:
    if name in FLAGS:
        return _FLAG_VALUES.get(cell.strip().lower(), cell)
    return cell


def _lines(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    pending, number = "", 0
    try:
        for chunk in chunks:
            *complete, pending = (pending + decoder.decode(chunk)).split("\n")
            for line in complete:
                number += 1
                yield line + "\n"
            if len(pending) > LONGEST_LINE:
                raise Unreadable(f"line {number + 1} is longer than {LONGEST_LINE:,} characters")
        pending += decoder.decode(b"", final=True)
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError):
            number += error.object.count(b"\n", 0, error.start)
        raise Unreadable(
            f"line {number + 1} is not {encoding} text: save the file as UTF-8, or name its --encoding"
        ) from None
    if pending:
        yield pending


def _fitness(text: str, dialect: Dialect) -> tuple[int, int, int]:
    """Attributes that the header names, rows as long as it, and (less is better) quotes left over."""
    complete, _, _ = text.rpartition("\n")
    reader = csv.reader((complete or text).splitlines(keepends=True), dialect)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        rows.extend(islice(filter(any, reader), SAMPLE_ROWS + 1))
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    known = sum(_name(cell).lower() in _KNOWN for cell in header)
    fitting = sum(len(row) == len(header) for row in body)
    left_over = sum(
        cell[:1] in "\"'" and len(cell) > 1 and cell[-1] == cell[0] for row in body for cell in row
    )
    return known, fitting, -left_over
