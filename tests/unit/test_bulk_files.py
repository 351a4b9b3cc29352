"""Files as people have them, one small file of each kind, and what comes out of each (contract §12)."""

import gzip
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from worker.bulk.readers import Reading, Row
from worker.bulk.survey import Survey
from worker.errors import UsageError, WorkerError
from worker.tables.damage import (
    CELL_COUNT,
    DECIMAL,
    ERROR_VALUE,
    NOT_DIGITS,
    QUOTING,
    ROUNDED,
    SCIENTIFIC,
    SECRET_AS_ID,
    Kind,
)

FILES = Path(__file__).parents[1] / "examples" / "files"
FIRST, SECOND = "1732555047025799", "1732555047025800"
TWO = [(2, FIRST), (3, SECOND)]

Expected = list[tuple[int, str | Kind]]
"""For each row its line, and its id or what is damaged in it."""

READ: dict[str, Expected] = {
    "blank_lines.csv": [(4, FIRST), (7, SECOND)],
    "broken_quotes.csv": [(2, QUOTING), (3, SECOND)],
    "business_units.csv": [(2, FIRST), (3, FIRST), (4, FIRST)],
    "csv_named.xlsx": TWO,
    "database_null.csv": [(2, FIRST)],
    "decimal.csv": [(2, DECIMAL)],
    "empty.csv": [],
    "error_values.csv": [
        (2, ERROR_VALUE),
        (3, ERROR_VALUE),
        (4, ERROR_VALUE),
        (5, ERROR_VALUE),
        (6, FIRST),
    ],
    "far_cell.xlsx": [(2, FIRST), (40, CELL_COUNT)],
    "flags.csv": [(line, f"17325550470257{line - 2:02}") for line in range(2, 10)],
    "full_width_digits.csv": [(2, NOT_DIGITS)],
    "header_twice.csv": [(2, FIRST), (4, SECOND)],
    "headers_as_people_write_them.csv": TWO,
    "json_from_a_spreadsheet.jsonl": [(1, SCIENTIFIC), (2, "page-1")],
    "letters_in_id.csv": [(2, NOT_DIGITS), (3, NOT_DIGITS)],
    "not_packed.csv.gz": TWO,
    "not_urls.csv": TWO,
    "nul_bytes.csv": [(2, FIRST)],
    "old_mac_line_ends.csv": TWO,
    "only_header.csv": [],
    "packed.csv.gz": TWO,
    "packed.jsonl.gz": [(1, "1")],
    "packed_workbook.xlsx.gz": TWO,
    "quotes.csv": [(2, FIRST), (3, SECOND), (5, "1732555047025801")],
    "repeated_page.csv": [(2, FIRST), (3, SECOND), (4, FIRST)],
    "rounded.csv": [(2, ROUNDED), (3, ROUNDED), (4, "1732555047025810")],
    "scientific.csv": [(2, SCIENTIFIC), (3, SCIENTIFIC), (4, SCIENTIFIC)],
    "secret_as_id.csv": [(2, SECRET_AS_ID)],
    "semicolon.csv": TWO,
    "sep_line.csv": [(3, FIRST), (4, SECOND)],
    "shifted.csv": [(2, CELL_COUNT), (3, CELL_COUNT), (4, FIRST)],
    "swapped_columns.csv": [(2, NOT_DIGITS)],
    "tab.txt": TWO,
    "title_rows.csv": [(4, FIRST), (5, SECOND)],
    "trailing_columns.csv": TWO,
    "two_sheets.xlsx": [(2, FIRST)],
    "unknown_columns.csv": [(2, FIRST)],
    "utf16.csv": TWO,
    "utf16.jsonl": [(1, "1")],
    "utf16_without_mark.csv": TWO,
    "utf8_mark.csv": TWO,
    "white_space.csv": [(2, FIRST)],
    "workbook.xlsx": TWO,
    "workbook_named.csv": TWO,
    "workbook_with_errors.xlsx": [
        (2, ERROR_VALUE),
        (3, "None"),  # a formula that was never calculated: an empty cell
        (4, NOT_DIGITS),
        (5, "1732555047025801"),
    ],
    "workbook_with_title.xlsx": [(4, FIRST), (6, SECOND)],
    "wrapped.csv": TWO,
}

REFUSED = {
    "archive_named.xlsx": "it is a ZIP archive and no workbook: unpack it, or save the workbook as .xlsx",
    "cp1252.csv": "line 2 is not utf-8 text: it looks like cp1252: give --encoding cp1252",
    "cp932.csv": "line 2 is not utf-8 text: it looks like cp932: give --encoding cp932",
    "damaged_workbook.xlsx": "the workbook is damaged: open it in a spreadsheet and save it again",
    "duplicate_column.csv": "the columns pageId and page id are both pageId: keep one of them",
    "no_header.csv": "no column has the name of an attribute (such as pageId): is the header line missing?",
    "old_workbook.xls": "it is an old or protected workbook: save it as .xlsx, without a password",
    "old_workbook_named.csv": "it is an old or protected workbook: save it as .xlsx, without a password",
    "open_document.ods": "it is an OpenDocument file: save it as .xlsx or CSV",
    "open_quote.csv": "after row 1: a cell in lines 3 to 4 does not end: is a quotation mark missing?",
    "packed_half.csv.gz": "the compressed file ends too early: is it complete?",
    "page_saved_as.xls": "it is a web page that is named like a spreadsheet: open it and save it as .xlsx",
}


def read(path: Path, **how: Any) -> tuple[list[tuple[Row, list[Kind]]], list[str]]:
    """The rows of a file, each with what is damaged in it; and what the job is warned of."""
    reading = Reading((str(path),), "messenger", **how)
    with Survey() as survey:
        survey.take(reading, stopped=lambda: False)
        rows = [(row, [problem.kind for problem in survey.problems(row)]) for row in reading.rows()]
        return rows, list(survey.warnings(reading))


def values(name: str, attribute: str, **how: Any) -> list[object]:
    return [row.attributes.get(attribute) for row, _ in read(FILES / name, **how)[0]]


def test_each_example_file_is_expected_to_be_something() -> None:
    assert {path.name for path in FILES.iterdir()} == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_what_comes_out_of_a_file(name: str) -> None:
    rows, _ = read(FILES / name)
    assert [(row.line, kinds[0] if kinds else str(row.resource_id)) for row, kinds in rows] == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_of_no_use_is_told_with_what_to_do(name: str) -> None:
    with pytest.raises(WorkerError) as refusal:
        list(Reading((str(FILES / name),), "messenger").rows())
    assert REFUSED[name] in str(refusal.value)
    assert str(FILES / name) in str(refusal.value)


def test_flags_are_taken_in_words_and_in_numbers() -> None:
    given = [True, False, True, False, True, 1, "WAHR", "はい"]
    assert values("flags.csv", "isActive") == given


def test_names_keep_what_is_within_their_quotes() -> None:
    assert values("quotes.csv", "pageName") == ['Engineers, "the" team', "two\nlines", "Engineers"]


@pytest.mark.parametrize(
    ("name", "encoding", "page"),
    [("cp932.csv", "cp932", "髙島屋①㈱"), ("cp1252.csv", "cp1252", "Käse Müller")],
)
def test_the_encoding_that_the_message_names_is_the_right_one(name: str, encoding: str, page: str) -> None:
    assert values(name, "pageName", encoding=encoding) == [page]


def test_a_workbook_keeps_what_its_cells_are() -> None:
    (first, _), (second, _) = read(FILES / "workbook.xlsx")[0]
    assert first.attributes["applicationId"] == "1093076390764037"
    assert (first.attributes["isActive"], second.attributes["isActive"]) == (True, 0)


@pytest.mark.parametrize("sheet", ["Channels", "channels", "2"])
def test_another_sheet_is_read_when_it_is_named(sheet: str) -> None:
    assert values("two_sheets.xlsx", "pageId", sheet=sheet) == ["1732555047025802"]


def test_a_sheet_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="has no sheet Pagse: --sheet may be Pages, Channels"):
        read(FILES / "two_sheets.xlsx", sheet="Pagse")


def test_a_column_chooses_the_business_unit_of_its_row() -> None:
    rows, warnings = read(FILES / "business_units.csv")
    assert [row.account_id for row, _ in rows] == ["510001", None, "510002"]
    assert warnings == []  # one page in several business units is several resources


def test_full_width_digits_are_told_with_what_is_right() -> None:
    ((row, _),) = read(FILES / "full_width_digits.csv")[0]
    assert "(write 1732555047025799)" in str(row.problems[0])


@pytest.mark.parametrize("name", ["shifted.csv", "secret_as_id.csv", "swapped_columns.csv"])
def test_a_secret_that_slid_into_another_column_is_not_shown(name: str) -> None:
    rows, warnings = read(FILES / name)
    shown = [*warnings, *(str(problem) for row, _ in rows for problem in row.problems)]
    secrets = (
        "someaccesstoken4fasdcruib213123knub",
        "03d537gg656gvkbe9b430f002e9c4517",
        "this_is_the_verify_token",
    )
    assert [secret for secret in secrets if secret in " ".join(shown)] == []
    assert [row.shown_id for row, kinds in rows if kinds] == [None] * sum(bool(kinds) for _, kinds in rows)


def test_a_page_in_several_rows_is_warned_of_with_its_lines() -> None:
    path = FILES / "repeated_page.csv"
    assert read(path)[1] == [
        f"messenger {FIRST} stands in 2 rows, and the last one wins: {path} line 2, {path} line 4"
    ]


def test_endpoint_urls_that_are_none_are_warned_of() -> None:
    (warning,) = read(FILES / "not_urls.csv")[1]
    assert '"graph.facebook.com/v2.6" in' in warning
    assert '"https://" in' in warning


def test_columns_that_are_left_out_are_warned_of_with_the_likely_name() -> None:
    (warning,) = read(FILES / "unknown_columns.csv")[1]
    assert warning.endswith("are left out (--send-unknown sends them): Notes, Page Nmae (is it pageName?)")


def test_a_workbook_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(FILES / "workbook.xlsx") as parts, zipfile.ZipFile(bomb, "w") as file:
        for part in parts.infolist():
            file.writestr(part, parts.read(part))
        with file.open("xl/media/zeros.bin", "w") as zeros:
            for _ in range(129):
                zeros.write(bytes(1024 * 1024))
    with pytest.raises(UsageError, match="the workbook is too large: save the sheet as CSV"):
        read(bomb)


def test_a_cell_at_the_far_end_of_a_sheet_takes_no_memory(tmp_path: Path) -> None:
    book = openpyxl.load_workbook(FILES / "workbook.xlsx")
    book.worksheets[0]["XFD100000"] = "far away"
    book.save(tmp_path / "far.xlsx")
    tracemalloc.start()
    try:
        assert [row.line for row in Reading((str(tmp_path / "far.xlsx"),)).rows()] == [2, 3, 100_000]
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_packed_line_without_end_is_refused_in_little_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as file:
        file.write(b"pageId,pageName\n")
        for _ in range(50):
            file.write(b"x" * 1024 * 1024)
    tracemalloc.start()
    try:
        with pytest.raises(WorkerError, match="line 2 is longer than"):
            list(Reading((str(tmp_path / "bomb.csv.gz"),)).rows())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
