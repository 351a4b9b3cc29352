"""Rows of cells from a workbook (`.xlsx`), a row held at a time (contract §12).

The parts of a workbook are read directly, as a stream, because libraries load a whole sheet as a rectangle
(one cell far away fills the memory), take an error value for an empty cell, and stop at cosmetics. Of styles
only the formats of dates count.
"""

import contextlib
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from functools import reduce
from posixpath import join, normpath
from typing import IO, BinaryIO, Final
from xml.etree.ElementTree import Element, iterparse

import xlsxwriter  # type: ignore[import-untyped]

from worker.contract.timestamps import microseconds
from worker.errors import UsageError
from worker.files.cells import RawRow
from worker.files.damage import DATE, EXACT_DIGITS, NUMBER, SpoiltCell
from worker.files.source import Corrupt

SIGNATURE: Final = b"PK\x03\x04"
OLD_SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # .xls, and every workbook with a password
DAMAGED: Final = "the workbook is damaged: open it in a spreadsheet and save it again"
LARGEST_UNPACKED: Final = 1024 * 1024 * 1024  # bytes; a million rows of registrations take less than half
DENSE: Final = 16 * 1024 * 1024  # bytes; a larger part that was packed more than this many times is no table:
DENSEST: Final = 150
LAST_ROW: Final = 1_048_576
LONGEST_CELL: Final = 32_767  # characters
COLUMNS: Final = 1000  # all that stands further right counts as one cell too many
TRUSTED_SINCE: Final = microseconds("2016-01-01T00:00:00Z") or 0  # tools write a fixed date before

_WHOLE: Final = frozenset({"c", "si", "cellXfs"})  # elements of which the children count too
_DATE_FORMATS: Final = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
_NOT_IN_A_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|general', re.IGNORECASE)
# What a damaged archive makes its readers raise.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError)
_BROKEN = (*_BROKEN_ZIP, SyntaxError, ValueError, LookupError, ArithmeticError)  # SyntaxError: of XML
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_OURS: Final = b"ott-worker submit --failed"
_COLUMN = re.compile(r"([A-Z]{1,3})[0-9]{1,10}\Z")


class Workbook:
    """A workbook's first visible sheet, or the named one. `notes` tell what its author may not expect; those
    on its rows are there when the rows have been read. `saved_at` is when it was saved, in microseconds since
    the epoch, None where it does not tell."""

    def __init__(self, file: BinaryIO, sheet: str | None = None) -> None:
        """Raises UsageError for a file that is no such workbook."""
        self._archive = _open(file)
        # Some writers use other cases, backslashes, or other names.
        self._members = {name.replace("\\", "/").lower(): name for name in self._archive.namelist()}
        self._named = {"sharedStrings": "xl/sharedStrings.xml", "styles": "xl/styles.xml"}
        self.notes: list[str] = []
        self.saved_at = self._saved_at()
        try:
            self._sheet = self._choose(sheet)
            self._dates = self._date_styles()
        except _BROKEN:
            raise UsageError(DAMAGED) from None

    def rows(self) -> Iterator[RawRow]:
        """Each row that has cells, with its number. Raises Corrupt where the sheet is damaged."""
        number, column = 0, 0
        cells: list[str] = []
        hidden = []
        try:
            with contextlib.closing(self._shared_texts()) as texts:
                for name, element in self._elements(self._sheet, "c", "row"):
                    if name == "c":
                        found = _COLUMN.match(element.get("r", ""))
                        column = _number_of(found[1]) if found else column + 1
                        if text := self._text(element, texts):
                            at = min(column, COLUMNS + 1) - 1
                            cells.extend([""] * (at - len(cells)))
                            cells[at:] = [text]
                        continue
                    number = int(element.get("r", number + 1))
                    if number > LAST_ROW:
                        raise ValueError("a row beyond the last one")
                    if element.get("hidden") in ("1", "true"):
                        hidden.append(number)
                    yield number, number, cells
                    cells, column = [], 0
        except _BROKEN:
            raise Corrupt(DAMAGED) from None
        if hidden:
            some = ", ".join(map(str, hidden[:5])) + (" …" if len(hidden) > 5 else "")
            self.notes.append(f"hidden rows ({len(hidden):,}) are read like the others: row {some}")

    def _saved_at(self) -> int | None:
        with contextlib.suppress(*_BROKEN):
            for _, element in self._elements("docProps/core.xml", "modified"):
                moment = microseconds((element.text or "").strip())
                return moment if moment is not None and moment >= TRUSTED_SINCE else None
        return None

    def _choose(self, name: str | None) -> str:
        """The part that holds the sheet."""
        sheets = list(self._sheets())
        if name is not None:
            for sheet, part, _ in sheets:
                if sheet.casefold() == name.casefold():
                    return part
            names = ", ".join(sheet for sheet, *_ in sheets)
            raise UsageError(f"the workbook has no sheet {name}: --sheet may be {names}")
        chosen, part = next(((sheet, part) for sheet, part, hidden in sheets if not hidden), ("", ""))
        if not part:
            raise UsageError("the workbook holds no visible sheet with cells")
        if len(sheets) > 1:
            others = ", ".join(f"{sheet}{hidden}" for sheet, _, hidden in sheets if sheet != chosen)
            self.notes.append(f"the sheet {chosen} is read; --sheet NAME takes another one: {others}")
        return part

    def _sheets(self) -> Iterator[tuple[str, str, str]]:
        """The name and the part of each sheet, and ` (hidden)` where it is."""
        parts = {}
        for _, each in self._elements("xl/_rels/workbook.xml.rels", "Relationship"):
            part = normpath(join("/xl", each.attrib["Target"])).lstrip("/")
            kind = each.get("Type", "").rpartition("/")[2]
            if kind == "worksheet":
                parts[each.attrib["Id"]] = part
            elif kind in self._named:
                self._named[kind] = part
        for _, each in self._elements("xl/workbook.xml", "sheet"):
            id_ = next((value for key, value in each.items() if key.endswith("}id")), "")
            if id_ in parts:
                hidden = "" if each.get("state", "visible") == "visible" else " (hidden)"
                yield each.attrib["name"], parts[id_], hidden

    def _shared_texts(self) -> sqlite3.Connection:
        """The texts that cells refer to, in a temporary database: they are most of a large workbook."""
        texts = sqlite3.connect("", check_same_thread=False)
        texts.execute("CREATE TABLE text (number INTEGER PRIMARY KEY, text)")
        elements = self._elements(self._named["sharedStrings"], "si")
        rows = ((number, _plain_text(element)) for number, (_, element) in enumerate(elements))
        texts.executemany("INSERT INTO text VALUES (?, ?)", rows)
        return texts

    def _date_styles(self) -> frozenset[int]:
        dates, formats = set(_DATE_FORMATS), []
        for name, element in self._elements(self._named["styles"], "numFmt", "cellXfs"):
            if name == "cellXfs":
                formats = [int(each.get("numFmtId", 0)) for each in element]
                continue
            code = _NOT_IN_A_DATE.sub("", element.get("formatCode", "")).lower()
            if any(letter in code for letter in "dmyhs"):
                dates.add(int(element.attrib["numFmtId"]))
        return frozenset(at for at, each in enumerate(formats) if each in dates)

    def _elements(self, part: str, *names: str) -> Iterator[tuple[str, Element]]:
        """The elements of these names in a part, if there is such a part, as they end. Nothing else is held:
        a sheet may be larger than the memory. Entities that multiply are an error to the parser."""
        member = self._members.get(part.lower())
        if member is None:
            return
        path: list[Element] = []
        whole = 0  # open elements whose children are kept
        with self._archive.open(member) as file:
            for event, element in iterparse(file, ("start", "end")):  # noqa: S314 (as above)
                if event == "start":
                    element.tag = element.tag.rpartition("}")[2]  # without its namespace
                    path.append(element)
                    whole += element.tag in _WHOLE
                    continue
                path.pop()
                whole -= element.tag in _WHOLE
                if element.tag in names:
                    yield element.tag, element
                if path and not whole:
                    path[-1].remove(element)

    def _text(self, cell: Element, texts: sqlite3.Connection) -> str:
        kind, inline = cell.get("t", "n"), cell.find("is")
        value = cell.findtext("v", "") if inline is None else _plain_text(inline)
        if kind == "n" and value:
            text = _number(value)
            if int(cell.get("s", 0)) in self._dates:
                return SpoiltCell(text, DATE)
            return SpoiltCell(text, NUMBER) if sum(map(str.isdigit, text)) > EXACT_DIGITS else text
        if kind == "s" and value:
            found = texts.execute("SELECT text FROM text WHERE number = ?", (int(value),)).fetchone()
            if found is None:
                raise ValueError("no such text")
            return _unescaped(found[0])
        if kind == "b":
            return {"1": "true", "0": "false"}.get(value, value)
        if kind == "d":
            return SpoiltCell(value, DATE)
        return _unescaped(value)


def _open(file: BinaryIO) -> zipfile.ZipFile:
    """Unpacking never exceeds the sizes that the parts state."""
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN:
        raise UsageError(DAMAGED) from None
    parts = archive.infolist()
    if not any(part.filename.lower().startswith(("xl/", "xl\\")) for part in parts):
        raise UsageError("it is an archive and no workbook: unpack it, or save the workbook as .xlsx")
    dense = any(part.file_size > max(DENSE, DENSEST * part.compress_size) for part in parts)
    if dense or sum(part.file_size for part in parts) > LARGEST_UNPACKED:
        raise UsageError("the workbook is too large: save the sheet as CSV")
    return archive


def _plain_text(element: Element) -> str:
    """A text, which may be in runs. How it is pronounced (`rPh`) is not a part of it."""
    runs = [run.findtext("t", "") for run in element.findall("r")]
    return element.findtext("t", "") + "".join(runs)


def _number(value: str) -> str:
    """A number as a cell shows it: whole ones without a fraction or an exponent."""
    if value.isdigit():
        return value
    try:
        number = float(value)
    except ValueError:  # a text whose type the writer left out
        return value
    return str(int(Decimal(repr(number)))) if number.is_integer() else repr(number)


def _unescaped(text: str) -> str:
    """`_x000D_` is how a workbook writes a character that XML cannot hold."""
    if "_x" not in text:
        return text
    unescaped = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair is no text


def _number_of(letters: str) -> int:
    return reduce(lambda number, letter: number * 26 + ord(letter) - 64, letters, 0)


def write(file: IO[bytes], rows: Iterable[Sequence[str]]) -> None:
    """Write rows as text, in columns of the format Text: a value that is entered later is kept as it is. The
    file must be one that can be read again."""
    with xlsxwriter.Workbook(file, {"constant_memory": True}) as workbook:
        text = workbook.add_format({"num_format": "@"})
        sheet = workbook.add_worksheet()
        sheet.set_column(0, COLUMNS, 24, text)
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                # The ellipsis marks the cell as damaged, so `submit` does not send the cut value.
                held = cell if len(cell) <= LONGEST_CELL else cell[: LONGEST_CELL - 1] + "…"
                if sheet.write_string(number, column, held, text):
                    raise UsageError("a workbook cannot hold all failed rows: name a .csv")
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = _OURS


def is_ours(file: BinaryIO) -> bool:
    """Whether `write` wrote it, and no spreadsheet has saved it since."""
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return archive.comment == _OURS
    return False


def cell_name(row: int, column: int) -> str:
    """`D152`, of the row and the column from 1."""
    letters = ""
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return f"{letters}{row}"
