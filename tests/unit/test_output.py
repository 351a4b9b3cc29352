"""What a terminal is sent: nothing that commands it, in text and in JSON; and tables that fit."""

import json

import pytest

from worker.cli import output
from worker.cli.dead_letters.look import LETTER_COLUMNS
from worker.cli.output import Table

CONTROLS = [*"\x00\x07\x1b\x7f\x85\x9b\u202e\u2066\u200f\u2028\U000e0041"]


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_controls_are_escaped_in_text_and_in_json(capsys, control):
    output.line(f"a{control}b")
    output.json_line({f"k{control}": [f"a{control}b"]})
    text, document = capsys.readouterr().out.splitlines()
    assert control not in text + document
    assert (text[:2], text[-1]) == ("a\\", "b")
    assert json.loads(document) == {f"k{control}": [f"a{control}b"]}


@pytest.mark.parametrize("name", ["株式会社　山田", "café", "👩‍👩‍👧", "نامه‌ای", "a\u00a0b"])
def test_what_people_write_is_shown_as_it_is(capsys, name):
    output.line(name)
    assert capsys.readouterr().out == f"{name}\n"
    assert output.printable(name) == name


LETTER = {
    "letter": "a1b2c3d4e5f60718",
    "id": "6f1c0a52-d0b1-4a5e-9c3a-0123456789ab",
    "reason": "exhausted",
    "deadAt": "2026-11-23T12:00:00.000001Z",
    "ottPlatformName": "messenger",
    "resourceId": "1732555047025799",
    "attempts": 6,
    "userId": None,
    "error": "10006 Please fix the following errors: PageId must be provided; IsActive is invalid",
}


def printed(width: int | None, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    Table(LETTER_COLUMNS, [LETTER], width).print()
    head, row = capsys.readouterr().out.splitlines()
    return head, row


def test_at_80_columns_the_cause_comes_first_and_ids_stay_whole(capsys):
    _, row = printed(80, capsys)
    assert row == "a1b2c3d4e5f60718  exhausted  PageId must be provided; IsActiv…  1732555047025799"


def test_where_there_is_room_nothing_is_cut(capsys):
    _, row = printed(None, capsys)
    whole = [*map(str, LETTER.values())][:-2]
    assert [text for text in whole if text not in row] == [LETTER["deadAt"]]
    assert "PageId must be provided; IsActive is invalid" in row


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160])
def test_a_row_is_no_wider_than_the_terminal(capsys, width):
    assert max(map(len, printed(width, capsys))) <= max(width, len("a1b2c3d4e5f60718  ") + 24)
