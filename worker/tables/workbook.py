"""Rows of cells from a workbook (`.xlsx`), a row held at a time (contract §12).

openpyxl streams a sheet and keeps what its cells are: whole numbers exact, error values as they are shown.
Faster readers load the whole sheet, so that a file of a few kilobytes can fill the memory, and take an error
value for an empty cell.
"""

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, BinaryIO, Final

from worker.errors import UsageError
from worker.tables.csv_file import RawRow
from worker.tables.source import Unreadable

SIGNATURE: Final = b"PK\x03\x04"
OLD_SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # .xls, and every workbook with a password
DAMAGED: Final = "the workbook is damaged: open it in a spreadsheet and save it again"
LARGEST_UNPACKED: Final = 1024 * 1024 * 1024  # bytes; a million rows of registrations take less than half
LARGEST_HELD: Final = 128 * 1024 * 1024  # bytes of the parts that are held in memory


def rows_of(file: BinaryIO, sheet: str | None = None) -> Iterator[RawRow]:
    """Each row of the first sheet, or of the named one, with its row number. Raises UsageError for a file
    that is no such workbook, Unreadable where it is damaged."""
    # Imported here: it takes a while, and most jobs are CSV.
    import openpyxl  # noqa: PLC0415

    with file:
        _check_size(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about extensions that are not read here
                book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        except Exception:  # openpyxl raises whatever its parsers do
            raise UsageError(DAMAGED) from None
        with closing(book):
            rows = _choose(book.worksheets, sheet)
            rows.reset_dimensions()  # a file may state a wrong size
            yield from _rows(rows.iter_rows(values_only=True))


def _rows(rows: Iterator[tuple[object, ...]]) -> Iterator[RawRow]:
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception:
            raise Unreadable(DAMAGED) from None
        if row is None:
            return
        number += 1
        yield number, [_text(value) for value in row]


def _choose(sheets: Sequence[Any], name: str | None) -> Any:
    if not sheets:
        raise UsageError("the workbook holds no sheet with cells")
    if name is None:
        return sheets[0]
    for sheet in sheets:
        if sheet.title.casefold() == name.casefold():
            return sheet
    if name.isdigit() and 1 <= int(name) <= len(sheets):
        return sheets[int(name) - 1]
    raise UsageError(f"the workbook has no sheet {name}: --sheet may be {', '.join(s.title for s in sheets)}")


def _check_size(file: BinaryIO) -> None:
    """Unpacking never exceeds the sizes that the parts state."""
    try:
        parts = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise UsageError(DAMAGED) from None
    if any(part.filename == "mimetype" for part in parts):
        raise UsageError("it is an OpenDocument file: save it as .xlsx or CSV")
    if not any(part.filename.startswith("xl/") for part in parts):
        raise UsageError("it is a ZIP archive and no workbook: unpack it, or save the workbook as .xlsx")
    held = sum(part.file_size for part in parts if not part.filename.startswith("xl/worksheets/"))
    if held > LARGEST_HELD or sum(part.file_size for part in parts) > LARGEST_UNPACKED:
        raise UsageError("the workbook is too large: save the sheet as CSV")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(Decimal(repr(value))))  # without the digits that only its binary form has
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, date | time) else str(value)
