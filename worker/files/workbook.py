"""Rows of cells from a workbook (`.xlsx`), one at a time (contract §12).

The parts of a workbook are read as streams. Libraries load a whole sheet as a rectangle (one distant cell
fills the memory), read an error value as an empty cell, and fail on cosmetic errors. Of the styles only date
formats matter."""

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
DENSE: Final = 16 * 1024 * 1024  # bytes; a larger part with a compression ratio above DENSEST is not a table
DENSEST: Final = 150
LAST_ROW: Final = 1_048_576
LONGEST_CELL: Final = 32_767  # characters
COLUMNS: Final = 1000  # cells further right count as one surplus cell
TRUSTED_SINCE: Final = microseconds("2016-01-01T00:00:00Z") or 0  # some tools write a fixed, earlier date

_WHOLE: Final = frozenset({"c", "si", "cellXfs"})  # elements whose children are needed
_DATE_FORMATS: Final = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
_NOT_IN_A_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|general', re.IGNORECASE)
# The errors of readers of a damaged archive.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError)
_BROKEN = (*_BROKEN_ZIP, SyntaxError, ValueError, LookupError, ArithmeticError)  # SyntaxError: of XML
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_OURS: Final = b"ott-worker submit --failed"
_COLUMN = re.compile(r"([A-Z]{1,3})[0-9]{1,10}\Z")


class Workbook:
    """A workbook's first visible sheet, or the named one. `notes` hold what its author may not expect; those
    about rows are added when the rows are read. `saved_at` is when it was saved, in microseconds since the
    epoch, None if unknown."""

    def __init__(self, file: BinaryIO, sheet: str | None = None) -> None:
        """Raises UsageError if the file is not such a workbook."""
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
        """Each row that has cells, with its number. Raises Corrupt if the sheet is damaged."""
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
                            cells[at : at + 1] = [text]
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
            raise UsageError("the workbook has no visible sheet with cells")
        if len(sheets) > 1:
            others = ", ".join(f"{sheet}{hidden}" for sheet, _, hidden in sheets if sheet != chosen)
            self.notes.append(f"the sheet {chosen} is read; --sheet NAME selects another one: {others}")
        return part

    def _sheets(self) -> Iterator[tuple[str, str, str]]:
        """The name and part of each sheet, and ` (hidden)` if it is hidden."""
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
        """The shared strings of cells, in a temporary database: they are most of a large workbook."""
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
        """The elements of these names in a part, if it exists. Others are dropped: a sheet may be larger than
        the memory. The parser rejects entity expansion."""
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
    """Open an archive. Its parts cannot decompress to more than the sizes that they state."""
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN:
        raise UsageError(DAMAGED) from None
    parts = archive.infolist()
    if not any(part.filename.lower().startswith(("xl/", "xl\\")) for part in parts):
        raise UsageError("it is an archive, not a workbook: unpack it, or save the workbook as .xlsx")
    dense = any(part.file_size > max(DENSE, DENSEST * part.compress_size) for part in parts)
    if dense or sum(part.file_size for part in parts) > LARGEST_UNPACKED:
        raise UsageError("the workbook is too large: save the sheet as CSV")
    return archive


def _plain_text(element: Element) -> str:
    """A text, which may be split into runs. Its pronunciation (`rPh`) is left out."""
    runs = [run.findtext("t", "") for run in element.findall("r")]
    return element.findtext("t", "") + "".join(runs)


def _number(value: str) -> str:
    """A number as text: an integer without a fraction or an exponent."""
    if value.isdigit():
        return value
    try:
        number = float(value)
    except ValueError:  # a text whose type the writer left out
        return value
    return str(int(Decimal(repr(number)))) if number.is_integer() else repr(number)


def _unescaped(text: str) -> str:
    """A text in which `_x000D_` stands for a character that XML cannot contain."""
    if "_x" not in text:
        return text
    unescaped = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates


def _number_of(letters: str) -> int:
    return reduce(lambda number, letter: number * 26 + ord(letter) - 64, letters, 0)


def write(file: IO[bytes], rows: Iterable[Sequence[str]]) -> None:
    """Write rows as text, in columns of the format Text, so that values entered later are kept too. The file
    must be readable and seekable."""
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
    """Whether `write` wrote the file, and no spreadsheet has saved it since."""
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return archive.comment == _OURS
    return False


def cell_name(row: int, column: int) -> str:
    """The cell's name, such as `D152`; row and column count from 1."""
    letters = ""
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return f"{letters}{row}"
