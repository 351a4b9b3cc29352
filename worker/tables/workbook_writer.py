"""Writes a workbook of one sheet whose cells are all text, and stay text when they are changed."""

import contextlib
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Final
from xml.sax.saxutils import escape

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
# Style 1 is Text, in the whole column: what somebody enters is kept as it is.
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


def write(file: BinaryIO, rows: Iterable[Sequence[str]]) -> None:
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
