"""Dead letters as a table: what comes back from a spreadsheet changes only the cells that were changed."""

import codecs
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rig import LINE, MESSENGER, messenger
from worker.amqp.consumer import Delivery
from worker.amqp.properties import build
from worker.dead_letters.letter import Letter, parse_letter
from worker.dead_letters.patch import InvalidPatch, Patch
from worker.dead_letters.table import COLUMNS, TablePatches, header, read_patches, row
from worker.errors import UsageError


def letter(body: bytes, request_id: str = "6f1c0a52-d0b1") -> Letter:
    properties = build(message_id=request_id, headers={"x-ott-error": "=cmd()", "x-ott-reason": "rejected"})
    return parse_letter(Delivery(1, body, properties, redelivered=False, arrived_at=0.0), "510000001")


def exported(*letters: Letter, reveal: bool = False) -> list[dict[str, str]]:
    text = (header() + b"".join(row(each, reveal=reveal) for each in letters)).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def saved(rows: list[dict[str, str]], delimiter: str = ",", *, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return codecs.BOM_UTF8 + text.getvalue().encode()


def patches(content: bytes, name: str = "letters.csv") -> TablePatches:
    Path(name).write_bytes(content)
    return read_patches(name)


PAGE = letter(messenger("1732555047025799", "  =Engineers, 株式会社"))
CHANNEL = letter(json.dumps(LINE).encode(), "line-1")


def test_a_row_holds_what_the_letter_says_and_no_secret() -> None:
    (cells,) = exported(PAGE)
    assert (cells["id"], cells["reason"], cells["error"]) == ("6f1c0a52-d0b1", "rejected", "'=cmd()")
    assert (cells["pageId"], cells["isActive"], cells["accountId"]) == (
        "1732555047025799",
        "true",
        "510000001",
    )
    assert cells["channelId"] == ""
    assert cells["pageAccessToken"] == "***"
    (revealed,) = exported(PAGE, reveal=True)
    assert revealed["pageAccessToken"] == MESSENGER["ottPlatformAttributes"]["pageAccessToken"]


@pytest.mark.parametrize("reveal", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_was_not_changed_changes_nothing(reveal: bool, delimiter: str, quoting: int) -> None:
    table = patches(saved(exported(PAGE, CHANNEL, reveal=reveal), delimiter, quoting=quoting))
    assert (table.of(PAGE), table.of(CHANNEL)) == (None, None)


def as_spreadsheet(cells: dict[str, str]) -> None:
    cells.update(pageId="1.73256E+15", applicationId="1.09308E+15", isActive="TRUE", pageAccessToken="")


def rounded(cells: dict[str, str]) -> None:
    cells["pageId"] = "1732555047025790"


def as_text(cells: dict[str, str]) -> None:
    cells.update(pageId='="1732555047025799"', id="'6f1c0a52-d0b1")


@pytest.mark.parametrize("spoil", [as_spreadsheet, rounded, as_text])
def test_what_a_spreadsheet_does_to_cells_by_itself_changes_nothing(
    spoil: Callable[[dict[str, str]], None],
) -> None:
    (cells,) = exported(PAGE)
    spoil(cells)
    assert patches(saved([cells])).of(PAGE) is None


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"pageAccessToken": "new"}, {"pageAccessToken": "new"}),
        ({"pageName": "a;b", "isActive": "no"}, {"pageName": "a;b", "isActive": False}),
        ({"pageId": "42"}, {"pageId": "42"}),
        ({"pageName": ""}, None),
    ],
)
def test_a_changed_cell_is_the_patch(changes: dict[str, str], fields: dict[str, Any] | None) -> None:
    (cells,) = exported(PAGE)
    cells.update(changes)
    assert patches(saved([cells], ";")).of(PAGE) == (Patch(fields) if fields else None)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pageId": "9.9E+15"}, "pageId"),
        ({"pageName": "#REF!"}, "pageName"),
        ({"accountId": "7"}, "accountId cannot be changed"),
    ],
)
def test_a_changed_cell_that_cannot_be_trusted_leaves_the_letter_where_it_is(
    changes: dict[str, str], problem: str
) -> None:
    (cells,) = exported(PAGE)
    cells.update(changes)
    found = patches(saved([cells])).of(PAGE)
    assert isinstance(found, InvalidPatch)
    assert str(found).startswith("line 2: ")
    assert problem in str(found)


def test_rows_that_contradict_each_other_or_name_no_letter_are_told() -> None:
    (first,), (second,) = exported(PAGE), exported(PAGE)
    second["pageName"] = "another"
    with pytest.raises(UsageError, match="lines 2 and 3 are both about the letter 6f1c0a52-d0b1"):
        patches(saved([first, second]))
    first["id"] = ""
    with pytest.raises(UsageError, match=r"^letters.csv: line 2 names no letter"):
        patches(saved([first]))
    with pytest.raises(UsageError, match=r"^nowhere.csv"):
        read_patches("nowhere.csv")


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"ottPlatformAttributes": 7}', b'{"a": {"b": 1}}'])
def test_a_letter_that_is_no_registration_has_a_row_all_the_same(body: bytes) -> None:
    (cells,) = exported(letter(body))
    assert (cells["id"], cells["pageId"]) == ("6f1c0a52-d0b1", "")
