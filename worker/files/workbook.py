"""Rows of cells from a workbook (`.xlsx`), a row held at a time (contract §12).

The parts of a workbook are read directly, as a stream, because libraries load a whole sheet as a rectangle
(one cell far away fills the memory), take an error value for an empty cell, and stop at cosmetics. Of styles
only the formats of dates count.
"""

import contextlib
import mmap
import re
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from posixpath import join, normpath
from typing import IO, BinaryIO, Final, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape

from worker.contract.timestamps import microseconds
from worker.errors import UsageError
from worker.files.csv_file import RawRow
from worker.files.damage import DATE, EXACT_DIGITS, NUMBER, SpoiltCell
from worker.files.source import CHUNK, Unreadable

SIGNATURE: Final = b"PK\x03\x04"
OLD_SIGNATURE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # .xls, and every workbook with a password
DAMAGED: Final = "the workbook is damaged: open it in a spreadsheet and save it again"
TOO_LARGE: Final = "the workbook is too large: save the sheet as CSV"
LARGEST_UNPACKED: Final = 1024 * 1024 * 1024  # bytes; a million rows of registrations take less than half
LARGEST_HELD: Final = 16 * 1024 * 1024  # bytes of the parts that are held in memory
DENSE: Final = 16 * 1024 * 1024  # bytes; a larger part that was packed more than this many times is no table:
DENSEST: Final = 150
LAST_ROW: Final = 1_048_576
COLUMNS: Final = 1000  # all that stands further right counts as one cell too many
TRUSTED_SINCE: Final = microseconds("2016-01-01T00:00:00Z") or 0  # tools write a fixed date before

_HELD: Final = ("xl/workbook.xml", "xl/_rels/workbook.xml.rels", "xl/styles.xml", "docProps/core.xml")
_EPOCHS: Final = {False: date(1899, 12, 30), True: date(1904, 1, 1)}
_DATE_FORMATS: Final = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
_NOT_IN_A_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|general', re.IGNORECASE)
# What a damaged archive makes its readers raise.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    expat.ExpatError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    NotImplementedError,
    RuntimeError,
)
_MODIFIED = re.compile(rb"<(?:\w+:)?modified\b[^>]*>([^<]*)<")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_PLACE = re.compile(r"([A-Z]{1,3})([0-9]{1,10})\Z")


class _Sheet(NamedTuple):
    name: str
    part: str
    is_visible: bool


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
            self._texts = self._shared_texts()
            self._dates = self._date_styles()
        except _BROKEN:
            raise UsageError(DAMAGED) from None

    def rows(self) -> Iterator[RawRow]:
        """Each row that has cells, with its number. Raises Unreadable where the sheet is damaged."""
        rows = _SheetRows(self._texts, self._dates, self._epoch)
        try:
            for chunk in self._chunks(self._sheet.part):
                rows.feed(chunk)
                yield from rows.taken()
        except _BROKEN:
            raise Unreadable(DAMAGED) from None
        if rows.hidden:
            some = ", ".join(map(str, rows.hidden[:5])) + (" …" if len(rows.hidden) > 5 else "")
            self.notes.append(f"hidden rows ({len(rows.hidden):,}) are read like the others: row {some}")
        if rows.merged:
            self.notes.append(f"of merged cells only the first holds the value: {', '.join(rows.merged[:5])}")

    def _saved_at(self) -> int | None:
        try:
            found = _MODIFIED.search(b"".join(self._chunks("docProps/core.xml")))
        except _BROKEN:
            return None
        moment = microseconds(found[1].decode(errors="replace").strip()) if found else None
        return moment if moment is not None and moment >= TRUSTED_SINCE else None

    def _choose(self, name: str | None) -> _Sheet:
        book, targets = _Elements(), _Elements()
        self._parse("xl/workbook.xml", book)
        self._parse("xl/_rels/workbook.xml.rels", targets)
        self._epoch = _EPOCHS[book.has("workbookPr", "date1904", ("1", "true"))]
        parts = {}
        for each in targets.of("Relationship"):
            part = normpath(join("/xl", each["Target"])).lstrip("/")
            kind = each.get("Type", "").rpartition("/")[2]
            if kind == "worksheet":
                parts[each["Id"]] = part
            elif kind in ("sharedStrings", "styles"):
                self._named[kind] = part
        sheets = [
            _Sheet(each["name"], parts[id_], each.get("state", "visible") == "visible")
            for each in book.of("sheet")
            if (id_ := next((v for k, v in each.items() if k.endswith(":id") or k == "id"), "")) in parts
        ]
        chosen = _named(sheets, name) if name is not None else next((s for s in sheets if s.is_visible), None)
        if chosen is None:
            raise UsageError("the workbook holds no visible sheet with cells")
        if len(sheets) > 1 and name is None:
            others = ", ".join(s.name + ("" if s.is_visible else " (hidden)") for s in sheets if s != chosen)
            self.notes.append(f"the sheet {chosen.name} is read; --sheet NAME takes another one: {others}")
        return chosen

    def _shared_texts(self) -> "_Texts":
        texts = _SharedTexts()
        self._parse(self._named["sharedStrings"], texts)
        return texts.texts

    def _date_styles(self) -> frozenset[int]:
        styles = _Elements()
        self._parse(self._named["styles"], styles)
        dates = set(_DATE_FORMATS)
        for each in styles.of("numFmt"):
            code = _NOT_IN_A_DATE.sub("", each.get("formatCode", "")).lower()
            if any(letter in code for letter in "dmyhs"):
                dates.add(int(each["numFmtId"]))
        formats = styles.within("cellXfs", "xf")
        return frozenset(at for at, each in enumerate(formats) if int(each.get("numFmtId", 0)) in dates)

    def _parse(self, part: str, into: "_Parser") -> None:
        for chunk in self._chunks(part):
            into.feed(chunk)

    def _chunks(self, part: str) -> Iterator[bytes]:
        """A part in pieces; none where there is no such part."""
        member = self._members.get(part.lower())
        if member is None:
            return
        with self._archive.open(member) as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _open(file: BinaryIO) -> zipfile.ZipFile:
    """Unpacking never exceeds the sizes that the parts state."""
    try:
        archive = zipfile.ZipFile(file)
    except _BROKEN:
        raise UsageError(DAMAGED) from None
    parts = archive.infolist()
    if any(part.filename == "mimetype" for part in parts):
        raise UsageError("it is an OpenDocument file: save it as .xlsx or CSV")
    if not any(part.filename.lower().startswith(("xl/", "xl\\")) for part in parts):
        raise UsageError("it is a ZIP archive and no workbook: unpack it, or save the workbook as .xlsx")
    held = sum(part.file_size for part in parts if part.filename in _HELD)
    dense = any(part.file_size > max(DENSE, DENSEST * part.compress_size) for part in parts)
    if dense or held > LARGEST_HELD or sum(part.file_size for part in parts) > LARGEST_UNPACKED:
        raise UsageError(TOO_LARGE)
    return archive


def _named(sheets: list[_Sheet], name: str) -> _Sheet:
    for sheet in sheets:
        if sheet.name.casefold() == name.casefold():
            return sheet
    if name.isdigit() and 1 <= int(name) <= len(sheets):
        return sheets[int(name) - 1]
    raise UsageError(f"the workbook has no sheet {name}: --sheet may be {', '.join(s.name for s in sheets)}")


class _Parser:
    """Reads one part. Names come without their prefix; a document type, which could define entities without
    end, is refused."""

    def __init__(self) -> None:
        self._expat = expat.ParserCreate()
        self._expat.buffer_text = True
        self._expat.StartElementHandler = self._first
        self._expat.CharacterDataHandler = self.data
        self._expat.StartDoctypeDeclHandler = _refuse

    def feed(self, chunk: bytes) -> None:
        self._expat.Parse(chunk, False)

    def _first(self, name: str, given: dict[str, str]) -> None:
        if ":" in name:
            self._expat.StartElementHandler = lambda name, given: self.begin(name.rpartition(":")[2], given)
            self._expat.EndElementHandler = lambda name: self.end(name.rpartition(":")[2])
        else:
            self._expat.StartElementHandler, self._expat.EndElementHandler = self.begin, self.end
        self._expat.StartElementHandler(name, given)

    def begin(self, name: str, given: dict[str, str]) -> None:
        """An element begins."""

    def end(self, name: str) -> None:
        """An element ends."""

    def data(self, text: str) -> None:
        """Text between the two."""


def _refuse(*_: object) -> None:
    raise ValueError("a document type")


class _Elements(_Parser):
    """All elements with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self._path: list[str] = []
        self._found: list[tuple[str, str, dict[str, str]]] = []

    def begin(self, name: str, given: dict[str, str]) -> None:
        self._found.append((self._path[-1] if self._path else "", name, given))
        self._path.append(name)

    def end(self, name: str) -> None:
        self._path.pop()

    def of(self, name: str) -> list[dict[str, str]]:
        return [given for _, each, given in self._found if each == name]

    def within(self, parent: str, name: str) -> list[dict[str, str]]:
        return [given for above, each, given in self._found if (above, each) == (parent, name)]

    def has(self, name: str, attribute: str, values: tuple[str, ...]) -> bool:
        return any(given.get(attribute) in values for given in self.of(name))


class _Texts:
    """Texts by their number, in a temporary file: they are most of a large workbook."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the texts are needed)
        self._ends = array("Q", [0])
        self._map: mmap.mmap | None = None

    def add(self, text: str) -> None:
        encoded = text.encode(errors="surrogatepass")
        self._file.write(encoded)
        self._ends.append(self._ends[-1] + len(encoded))

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self._ends) - 1:
            raise ValueError("no such text")
        if self._map is None:
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), max(1, self._ends[-1]), access=mmap.ACCESS_READ)
        return self._map[self._ends[number] : self._ends[number + 1]].decode(errors="surrogatepass")


class _SharedTexts(_Parser):
    """The texts that cells refer to. How they are pronounced (`rPh`) is not a part of them."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = _Texts()
        self._parts: list[str] = []
        self._takes = self._is_sound = False

    def begin(self, name: str, given: dict[str, str]) -> None:
        if name == "si":
            self._parts = []
        self._is_sound = self._is_sound or name == "rPh"
        self._takes = name == "t" and not self._is_sound

    def end(self, name: str) -> None:
        self._takes = False
        if name == "rPh":
            self._is_sound = False
        elif name == "si":
            self.texts.add(_unescaped("".join(self._parts)))

    def data(self, text: str) -> None:
        if self._takes:
            self._parts.append(text)


class _SheetRows(_Parser):
    """The rows of a sheet, as they end."""

    def __init__(self, texts: _Texts, dates: frozenset[int], epoch: date) -> None:
        super().__init__()
        self._texts, self._dates, self._epoch = texts, dates, epoch
        self._done: list[RawRow] = []
        self._number = 0
        self._cells: list[str] = []
        self._kind, self._style, self._column = "", 0, 0
        self._takes = self._is_sound = False
        self._value: list[str] = []
        self.hidden: list[int] = []
        self.merged: list[str] = []

    def taken(self) -> list[RawRow]:
        """The rows that have ended since the call before."""
        done, self._done = self._done, []
        return done

    def begin(self, name: str, given: dict[str, str]) -> None:
        if name == "c":
            found = _PLACE.match(given.get("r", ""))
            self._column = _column(found[1]) if found else self._column + 1
            self._kind, self._style = given.get("t", "n"), int(given.get("s", 0))
            self._value = []
        elif name == "row":
            self._number = int(given.get("r", self._number + 1))
            if self._number > LAST_ROW:
                raise ValueError("a row beyond the last one")
            self._cells, self._column = [], 0
            if given.get("hidden") in ("1", "true"):
                self.hidden.append(self._number)
        elif name == "mergeCell":
            self.merged.append(given.get("ref", ""))
        self._is_sound = self._is_sound or name == "rPh"
        self._takes = (name == "v" or name == "t") and not self._is_sound  # noqa: PLR1714 (for each element)

    def data(self, text: str) -> None:
        if self._takes:
            self._value.append(text)

    def end(self, name: str) -> None:
        self._takes = False
        if name == "c":
            if self._value:
                at = min(self._column, COLUMNS + 1) - 1
                self._cells.extend([""] * (at - len(self._cells)))
                self._cells[at:] = [self._text("".join(self._value))]
        elif name == "row":
            self._done.append((self._number, self._number, self._cells))
        elif name == "rPh":
            self._is_sound = False

    def _text(self, value: str) -> str:
        kind = self._kind
        if kind == "s":
            return self._texts[int(value)]
        if kind == "b":
            return "true" if value == "1" else "false"
        if kind == "d":
            return SpoiltCell(value, DATE)
        if kind != "n":
            return _unescaped(value)
        if self._style in self._dates:
            return SpoiltCell(self._date(value), DATE)
        text = _number(value)
        return SpoiltCell(text, NUMBER) if sum(map(str.isdigit, text)) > EXACT_DIGITS else text

    def _date(self, value: str) -> str:
        try:
            return (
                (datetime.combine(self._epoch, time()) + timedelta(days=float(value)))
                .isoformat()
                .removesuffix("T00:00:00")
            )
        except (ValueError, OverflowError):
            return value


def _number(value: str) -> str:
    """A number as a cell shows it: whole ones without a fraction or an exponent."""
    if value.isdigit():
        return value
    number = float(value)
    return str(int(Decimal(repr(number)))) if number.is_integer() else repr(number)


def _unescaped(text: str) -> str:
    """`_x000D_` is how a workbook writes a character that XML cannot hold."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number


SHEET: Final = "xl/worksheets/sheet1.xml"
_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_NS = "http://schemas.openxmlformats.org"
_MAIN = f'xmlns="{_NS}/spreadsheetml/2006/main"'
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_RELATION = f"{_NS}/officeDocument/2006/relationships"
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
_SHEET_BEGINS = (
    f'<worksheet {_MAIN}><cols><col min="1" max="100" width="24" style="1" customWidth="1"/></cols>'
    "<sheetData>"
)
# Style 1 is Text, for whole columns: a value that is entered later is kept as it is.
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_NS}/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
    f'<Override PartName="/xl/styles.xml" ContentType="{_TYPE}.styles+xml"/>'
    f'<Override PartName="/{SHEET}" ContentType="{_TYPE}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships"><Relationship Id="rId1" '
    f'Type="{_RELATION}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_NS}/package/2006/relationships">'
    f'<Relationship Id="rId1" Type="{_RELATION}/worksheet" Target="worksheets/sheet1.xml"/>'
    f'<Relationship Id="rId2" Type="{_RELATION}/styles" Target="styles.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook {_MAIN} xmlns:r="{_RELATION}"><sheets>'
    '<sheet name="Failed" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/styles.xml": f'<styleSheet {_MAIN}><fonts count="1"><font/></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill>'
    '<fill><patternFill patternType="gray125"/></fill></fills>'
    '<borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>'
    '<cellXfs count="2"><xf/><xf numFmtId="49" applyNumberFormat="1"/></cellXfs></styleSheet>',
}


def write(file: IO[bytes], rows: Iterable[Sequence[str]]) -> None:
    """Write the rows; a workbook needs a file that can be read again."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, text in _PARTS.items():
            archive.writestr(part, _XML + text)
        with archive.open(SHEET, "w", force_zip64=True) as sheet:
            sheet.write((_XML + _SHEET_BEGINS).encode())
            for number, row in enumerate(rows, 1):
                cells = "".join(_written(cell_name(number, at), cell) for at, cell in enumerate(row, 1))
                sheet.write(f'<row r="{number}">{cells}</row>'.encode(errors="replace"))
            sheet.write(b"</sheetData></worksheet>")


def is_ours(file: BinaryIO) -> bool:
    """Whether `write` wrote it, and no spreadsheet has saved it since."""
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return archive.namelist() == [*_PARTS, SHEET]
    return False


def _written(place: str, text: str) -> str:
    escaped = _NOT_IN_XML.sub(lambda found: f"_x{ord(found[0]):04X}_", text)
    return f'<c r="{place}" s="1" t="inlineStr"><is><t xml:space="preserve">{escape(escaped)}</t></is></c>'


def cell_name(row: int, column: int) -> str:
    """`D152`, of the row and the column from 1."""
    letters = ""
    while column:
        column, letter = divmod(column - 1, 26)
        letters = chr(65 + letter) + letters
    return f"{letters}{row}"
