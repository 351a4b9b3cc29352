"""Files as people have them, one small file of each kind, and what comes out of each (contract §12)."""

import gzip
import heapq
import os
import time
import tracemalloc
import zipfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from worker.errors import UsageError, WorkerError
from worker.files.damage import (
    ALL_END_IN_0,
    CELL_COUNT,
    DATE,
    DECIMAL,
    ERROR_VALUE,
    NOT_DIGITS,
    NUMBER,
    PLACEHOLDER,
    QUOTING,
    ROUNDED,
    SCIENTIFIC,
    SECRET_AS_ID,
    Kind,
    SpoiltCell,
)
from worker.files.job import Pacer
from worker.files.job_database import JobDatabase
from worker.files.rows import Reading, Row
from worker.files.workbook import Workbook, _unescaped, is_ours, write

FILES = Path(__file__).parents[1] / "examples" / "files"
FIRST, SECOND = "1732555047025799", "1732555047025800"
TWO = [(2, FIRST), (3, SECOND)]

Expected = list[tuple[int, str | Kind]]
"""For each row its line, and its id or what is damaged in it."""

FIRST_OF_TEN = "1732555047025790"


def _ids(lines: Iterable[int]) -> Expected:
    return [(line, f"173255504702579{line - 2}") for line in lines]


PLAIN = """
    csv_named.xlsx headers_as_people_write_them.csv not_packed.csv.gz not_urls.csv old_mac_line_ends.csv
    packed.csv.gz semicolon.csv tab.txt trailing_columns.csv utf16.csv utf16_without_mark.csv
    utf8_mark.csv wrapped.csv
"""
READ: dict[str, Expected] = {
    **dict.fromkeys(PLAIN.split(), TWO),
    "bad_colour.xlsx": _ids(range(2, 5)),
    "bad_validation.xlsx": _ids(range(2, 5)),
    "blank_lines.csv": [(4, FIRST), (7, SECOND)],
    "broken_quotes.csv": [(2, QUOTING), (3, SECOND)],
    "business_units.csv": [(2, FIRST), (3, FIRST), (4, FIRST)],
    "c_line_in_quotes.csv": _ids(range(2, 5)),
    "c_placeholders.csv": [(line, PLACEHOLDER) for line in range(2, 18)],
    "c_rounded_distinct.csv": [(line, ALL_END_IN_0) for line in range(2, 8)],
    "c_smart_quotes_values.csv": _ids(range(2, 4)),
    "database_null.csv": [(2, FIRST)],
    "decimal.csv": [(2, DECIMAL)],
    "empty.csv": [],
    "error_values.csv": [*((line, ERROR_VALUE) for line in range(2, 6)), (6, FIRST)],
    "far_cell.xlsx": [(2, FIRST), (40, CELL_COUNT)],
    "flags.csv": [(line, f"17325550470257{line - 2:02}") for line in range(2, 10)],
    "formats.xlsx": [(2, FIRST_OF_TEN), (3, DATE), (4, DATE)],
    "full_width_digits.csv": [(2, NOT_DIGITS)],
    "header_twice.csv": [(2, FIRST), (4, SECOND)],
    "hidden_rows.xlsx": _ids(range(2, 5)),
    "hidden_sheet_first.xlsx": _ids(range(2, 5)),
    "json_from_a_spreadsheet.jsonl": [(1, SCIENTIFIC), (2, "page-1")],
    "letters_in_id.csv": [(2, NOT_DIGITS), (3, NOT_DIGITS)],
    "nul_bytes.csv": [(2, FIRST)],
    "numeric_ids_rounded_distinct.xlsx": [(2, NUMBER), (3, NUMBER), (4, NUMBER)],
    "only_header.csv": [],
    "packed.jsonl.gz": [(1, "1")],
    "packed_workbook.xlsx.gz": [(2, NUMBER), (3, SECOND)],
    "quotes.csv": [(2, FIRST), (3, SECOND), (5, "1732555047025801")],
    "repeated_page.csv": [(2, FIRST), (3, SECOND), (4, FIRST)],
    "rounded.csv": [(2, ROUNDED), (3, ROUNDED), (4, "1732555047025810")],
    "scientific.csv": [(2, SCIENTIFIC), (3, SCIENTIFIC), (4, SCIENTIFIC)],
    "secret_as_id.csv": [(2, SECRET_AS_ID)],
    "sep_line.csv": [(3, FIRST), (4, SECOND)],
    "shifted.csv": [(2, CELL_COUNT), (3, CELL_COUNT), (4, FIRST)],
    "swapped_columns.csv": [(2, NOT_DIGITS)],
    "title_rows.csv": [(4, FIRST), (5, SECOND)],
    "two_sheets.xlsx": [(2, FIRST)],
    "unknown_columns.csv": [(2, FIRST)],
    "utf16.jsonl": [(1, "1")],
    "white_space.csv": [(2, FIRST)],
    "workbook.xlsx": [(2, NUMBER), (3, SECOND)],
    "workbook_named.csv": [(2, NUMBER), (3, SECOND)],
    "workbook_with_errors.xlsx": [
        (2, ERROR_VALUE),
        (3, "None"),  # a formula that was never calculated: an empty cell
        (4, DATE),
        (5, "1732555047025801"),
    ],
    "workbook_with_title.xlsx": [(4, FIRST), (6, SECOND)],
    "x000d.xlsx": _ids(range(2, 4)),
}

REFUSED = {
    "archive_named.xlsx": "it is an archive, not a workbook: unpack it, or save the workbook as .xlsx",
    "cp1252.csv": "line 2 is not utf-8 text: save the file as UTF-8, or name its --encoding",
    "c_mixed_encoding.csv": "line 3 is not utf-8 text: save the file as UTF-8, or name its --encoding",
    "cp932.csv": "line 2 is not utf-8 text: save the file as UTF-8, or name its --encoding",
    "damaged_workbook.xlsx": "the workbook is damaged: open it in a spreadsheet and save it again",
    "duplicate_column.csv": "the columns pageId and page id are both pageId: keep one of them",
    "no_header.csv": "no column has the name of an attribute (such as pageId): is the header line missing?",
    "old_workbook.xls": "it is an old or protected workbook: save it as .xlsx, without a password",
    "old_workbook_named.csv": "it is an old or protected workbook: save it as .xlsx, without a password",
    "open_document.ods": "it is an archive, not a workbook: unpack it, or save the workbook as .xlsx",
    "open_quote.csv": "after row 1: a cell in lines 3 to 4 does not end: is a quotation mark missing?",
    "packed_half.csv.gz": "the compressed file ends too early: is it complete?",
    "page_saved_as.xls": "it is a web page that is named like a spreadsheet: open it and save it as .xlsx",
}


def read(path: Path, **how: Any) -> tuple[list[tuple[Row, list[Kind]]], list[str]]:
    """The rows of a file, each with what is damaged in it; and what the job is warned of."""
    reading = Reading((str(path),), "messenger", **how)
    with JobDatabase() as database:
        database.take(reading)
        rows = [(row, [problem.kind for problem in database.problems(row)]) for row in reading.rows()]
        return rows, list(database.warnings(reading))


def values(name: str, attribute: str, **how: Any) -> list[object]:
    return [row.attributes.get(attribute) for row, _ in read(FILES / name, **how)[0]]


def test_each_example_file_is_expected_to_be_something():
    assert {path.name for path in FILES.iterdir()} == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_what_comes_out_of_a_file(name):
    rows, _ = read(FILES / name)
    assert [(row.line, kinds[0] if kinds else str(row.resource_id)) for row, kinds in rows] == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_of_no_use_is_told_with_what_to_do(name):
    with pytest.raises(WorkerError) as refusal:
        list(Reading((str(FILES / name),), "messenger").rows())
    assert REFUSED[name] in str(refusal.value)
    assert str(FILES / name) in str(refusal.value)


def test_flags_are_taken_in_words_and_in_numbers():
    given = [True, False, True, False, True, 1, "WAHR", "はい"]
    assert values("flags.csv", "isActive") == given


@pytest.mark.parametrize(
    ("name", "encoding", "page"),
    [("cp932.csv", "cp932", "髙島屋①㈱"), ("cp1252.csv", "cp1252", "Käse Müller")],
)
def test_the_encoding_that_the_message_names_is_the_right_one(name, encoding, page):
    assert values(name, "pageName", encoding=encoding) == [page]


def test_a_workbook_keeps_what_its_cells_are():
    (first, _), (second, _) = read(FILES / "workbook.xlsx")[0]
    assert first.attributes["applicationId"] == "1093076390764037"
    assert (first.attributes["isActive"], second.attributes["isActive"]) == (True, 0)


@pytest.mark.parametrize("sheet", ["Channels", "channels"])
def test_another_sheet_is_read_when_it_is_named(sheet):
    assert values("two_sheets.xlsx", "pageId", sheet=sheet) == ["1732555047025802"]


def test_a_sheet_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UsageError, match="has no sheet Pagse: --sheet may be Pages, Channels"):
        read(FILES / "two_sheets.xlsx", sheet="Pagse")


@pytest.mark.parametrize("name", ["shifted.csv", "secret_as_id.csv", "swapped_columns.csv"])
def test_a_secret_that_slid_into_another_column_is_not_shown(name):
    rows, warnings = read(FILES / name)
    shown = [*warnings, *(str(problem) for row, _ in rows for problem in row.problems)]
    secrets = (
        "someaccesstoken4fasdcruib213123knub",
        "03d537gg656gvkbe9b430f002e9c4517",
        "this_is_the_verify_token",
    )
    assert [secret for secret in secrets if secret in " ".join(shown)] == []
    assert [row.shown_id for row, kinds in rows if kinds] == [None] * sum(bool(kinds) for _, kinds in rows)


TOKEN = "2 pages have the same pageAccessToken"
WARNINGS = {
    "bad_colour.xlsx": [],
    "c_smart_quotes_values.csv": ["curly quotes surround a value, and are sent: *** in {} row 2 (line 2), "],
    "hidden_rows.xlsx": ["{}: hidden rows (1) are read like the others: row 3"],
    "hidden_sheet_first.xlsx": [
        "{}: the sheet Sheet2 is read; --sheet NAME selects another one: Sheet1 (hidden)"
    ],
    "not_urls.csv": [
        TOKEN,
        'endpointUrl is not a URL (http:// or https://): "graph.facebook.com/v2.6" in {} row 2 (line 2), "',
    ],
    "repeated_page.csv": [
        f"messenger {FIRST} is in 2 rows, and the last one wins: {{}} row 2 (line 2), {{}} row 4",
        TOKEN,
    ],
    "unknown_columns.csv": [
        "{}: columns without an attribute are left out (--send-unknown sends them): Notes, Page Nmae"
    ],
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_the_author_may_not_expect_is_warned_of(name):
    told, path = read(FILES / name)[1], str(FILES / name)
    for warning, expected in zip(told, WARNINGS[name], strict=True):
        assert warning.startswith(expected.replace("{}", path))


def bomb(path: Path, part: str, beginning: bytes, filling: bytes, megabytes: int) -> str:
    """A workbook in which one part unpacks to many megabytes."""
    with zipfile.ZipFile(FILES / "bad_colour.xlsx") as parts, zipfile.ZipFile(path, "w", 8) as file:
        for each in parts.infolist():
            if each.filename != part:
                file.writestr(each, parts.read(each))
        with file.open(part, "w") as packed:
            packed.write(beginning)
            for _ in range(megabytes):
                packed.write(filling * (1024 * 1024 // len(filling)))
    return str(path)


SHEET = "xl/worksheets/sheet1.xml"
ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 100 if n else "x" * 100}">' for n in range(6))
MULTIPLYING = f"<!DOCTYPE x [{ENTITIES}]><worksheet><row r='1'><c t='str'><v>&e5;</v></c></row>".encode()
HARMFUL = {
    "a sheet of spaces": (
        lambda path: bomb(path / "bomb.xlsx", SHEET, b"<worksheet>", b" ", 200),
        "the workbook is too large: save the sheet as CSV",
    ),
    "a row number beyond the last one": (
        lambda path: bomb(
            path / "bomb.xlsx", SHEET, b'<worksheet><sheetData><row r="2000000000"/></sheetData>', b" ", 1
        ),
        "the workbook is damaged",
    ),
    "entities that multiply": (
        lambda path: bomb(path / "bomb.xlsx", SHEET, MULTIPLYING, b" ", 1),
        "the workbook is damaged",
    ),
    "a line without end": (
        lambda path: packed(path / "bomb.csv.gz", b"pageId,pageName\n", b"x" * 1024 * 1024, 50),
        "line 2 is longer than",
    ),
}


def packed(path: Path, beginning: bytes, piece: bytes, pieces: int) -> str:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(beginning)
        for _ in range(pieces):
            file.write(piece)
    return str(path)


@pytest.mark.parametrize("name", HARMFUL)
def test_a_small_file_cannot_do_harm(name, tmp_path):
    make, why = HARMFUL[name]
    path = make(tmp_path)
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(WorkerError, match=why):
            deque(Reading((path,), "messenger").rows(), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 40  # traced, which takes several times as long


def test_what_is_written_as_a_workbook_is_read_back_as_text(tmp_path):
    cells = [
        "pageId",
        "1732555047025799",
        " a\r\nb ",
        "=1+1",
        "_x0041_",
        "<&\x01\ufffe",
        "\U0001f600",
        "#N/A",
    ]
    with (tmp_path / "out.xlsx").open("w+b") as file:
        write(file, [cells, ["pageId", *cells]])
        assert is_ours(file)
        read_back = [row for _, _, row in Workbook(file).rows()]
    assert read_back == [cells, ["pageId", *cells]]
    assert not any(isinstance(cell, SpoiltCell) for row in read_back for cell in row)


def test_a_workbook_takes_a_cell_that_is_too_long_as_damaged_and_half_a_pair_as_lost(tmp_path):
    with (tmp_path / "out.xlsx").open("w+b") as file:
        write(file, [["a" * 40_000, "_xD800_"]])
        ((_, _, row),) = Workbook(file).rows()
    assert row == ["a" * 32_766 + "…", "_xD800_"]
    assert _unescaped("_xD800_ _xD83D__xDE00_") == "\ufffd \U0001f600"


@pytest.mark.parametrize(
    ("take", "parallel", "pause"),
    [(0.05, 200, 0.0), (0.5, 200, 0.0), (0.025, 1, 0.0), (2.0, 100, 0.0), (0.025, 1, 1.0)],
)
def test_a_job_has_no_more_rows_out_than_are_settled_in_two_seconds(take, parallel, pause):
    """A worker that calls `parallel` rows at once, each for `take` seconds, and pauses after each 80th. The
    wait is what another request would find ahead of it."""
    pacer, now, waits = Pacer(), 0.0, []
    running: deque[tuple[float, float]] = deque()  # sent, done
    free = [0.0] * parallel
    for _ in range(4000):
        while len(running) < pacer.limit(now):
            slot = heapq.heappop(free) + (pause if len(waits) % 80 == 79 else 0.0)
            heapq.heappush(free, max(now, slot) + take)
            running.append((now, max(now, slot) + take))
            waits.append(max(0.0, slot - now))
        sent, now = running.popleft()
        pacer.answered(now, now - sent, len(running))
    assert max(waits[200:]) <= (1.6 if pause else 2.0)
    assert 4000 / now >= 0.7 * parallel / (take + pause / 80)


def test_a_fixed_number_of_rows_may_be_out():
    assert Pacer(7).limit(0.0) == 7


CELLS = {
    "leading zeros of a formula's result": ('<c r="A2"><f>B!A1</f><v>0100</v></c>', ["0100"]),
    "a formula that was never calculated": ('<c r="A2" t="str"><f>B!A1</f></c>', []),
    "text in runs, with how it is spoken": (
        '<c r="A2" t="inlineStr"><is><r><t>first </t></r><r><t>second</t></r><rPh><t>x</t></rPh></is></c>',
        ["first second"],
    ),
    "a shared text in runs": ('<c r="A2" t="s"><v>0</v></c>', ["a b"]),
    "a style that is not there": ('<c r="A2" s="99"><v>0</v></c>', ["0"]),
    "a text whose type is left out": ('<c r="A2"><v>a text</v></c>', ["a text"]),
    "an error": ('<c r="A2" t="e"><v>#N/A</v></c>', ["#N/A"]),
    "a number that XML writes with an exponent": ('<c r="A2"><v>1.23456789E8</v></c>', ["123456789"]),
    "a fraction of binary numbers": ('<c r="A2"><v>0.10000000000000001</v></c>', ["0.1"]),
    "a date as text": ('<c r="A2" t="d"><v>2026-11-23</v></c>', [SpoiltCell("2026-11-23", DATE)]),
    "cells out of order": ('<c r="C2"><v>3</v></c><c r="A2"><v>1</v></c><c><v>2</v></c>', ["1", "2", "3"]),
    "cells without places": ('<c t="b"><v>1</v></c><c/><c><v>7</v></c>', ["true", "", "7"]),
}


@pytest.mark.parametrize("prefix", ["", "x:"])
@pytest.mark.parametrize("name", CELLS)
def test_what_a_cell_holds(tmp_path, name, prefix):
    """Also with prefixed elements and parts whose names are written otherwise, as some tools do."""
    xml, expected = CELLS[name]
    sheet = f'<worksheet xmlns:x="m"><sheetData><row r="2">{xml}</row></sheetData></worksheet>'
    texts = '<sst xmlns="m"><si><r><t>a </t></r><r><t>b</t></r><rPh><t>x</t></rPh></si></sst>'
    sheet = sheet.replace("</", "<\0").replace("<", f"<{prefix}").replace(f"{prefix}\0", f"/{prefix}")
    with (
        zipfile.ZipFile(FILES / "bad_colour.xlsx") as parts,
        zipfile.ZipFile(tmp_path / "a.xlsx", "w") as file,
    ):
        for each in parts.namelist():
            if each != SHEET:
                file.writestr(each, parts.read(each))
        file.writestr(SHEET.replace("sheet1", "Sheet1").replace("/", "\\"), sheet)
        file.writestr("xl/SharedStrings.xml", texts)
    with (tmp_path / "a.xlsx").open("rb") as opened:
        ((row, _, cells),) = Workbook(opened).rows()
    assert (row, cells) == (2, expected)
    assert list(map(type, cells)) == list(map(type, expected))


def test_the_name_of_a_file_is_shown_on_one_line_whatever_its_bytes(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9 \x1b[2J\n.csv"
    with open(path, "wb") as file:
        file.write(b"pageId,pageName\n1,a\n")
    ((row, _),) = read(Path(os.fsdecode(path)))[0]
    assert row.where("pageId") == f"{tmp_path}/caf\\xe9 \\x1b[2J\\n.csv row 2 (line 2)"
