"""Corrections of dead letters, by fields or as a table: what comes back from a spreadsheet changes only the
cells that were changed."""

import codecs
import csv
import gzip
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.rig import LINE, MESSENGER, messenger
from worker.amqp.consumer import Delivery
from worker.amqp.properties import build
from worker.broker.encryption import Encryptor
from worker.contract.selection import Selection
from worker.contract.settlement import Resource
from worker.contract.timestamps import moment
from worker.dead_letters.letter import Letter
from worker.dead_letters.patch import COLUMNS, HEADER, NotReplayable, Patches, parse, read_patches, row
from worker.errors import UsageError
from worker.settings import load_settings


def letter(body: bytes, request_id: str = "6f1c0a52-d0b1") -> Letter:
    properties = build(message_id=request_id, headers={"x-ott-error": "=cmd()", "x-ott-reason": "rejected"})
    delivery = Delivery(1, body, properties, redelivered=False, arrived_at=0.0)
    return Letter(delivery, Encryptor(load_settings()), "510000001")


def exported(*letters: Letter, reveal: bool = False) -> list[dict[str, str]]:
    text = (HEADER + b"".join(row(each, reveal=reveal) for each in letters)).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def saved(rows: list[dict[str, str]], delimiter: str = ",", *, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return codecs.BOM_UTF8 + text.getvalue().encode()


def patches(content: bytes, name: str = "letters.csv") -> Patches:
    Path(name).write_bytes(content)
    return read_patches(name)


PAGE = letter(messenger("1732555047025799", "  =Engineers, 株式会社"))
CHANNEL = letter(json.dumps(LINE).encode(), "line-1")


def test_a_row_holds_what_the_letter_says_and_no_secret():
    (cells,) = exported(PAGE)
    assert (cells["id"], cells["reason"], cells["error"]) == ("6f1c0a52-d0b1", "rejected", "'=cmd()")
    assert cells["pageId"] == "1732555047025799"
    assert (cells["isActive"], cells["accountId"]) == ("true", "510000001")
    assert cells["channelId"] == ""
    assert cells["pageAccessToken"] == "***"
    (revealed,) = exported(PAGE, reveal=True)
    assert revealed["pageAccessToken"] == MESSENGER["ottPlatformAttributes"]["pageAccessToken"]


@pytest.mark.parametrize("reveal", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_was_not_changed_changes_nothing(reveal, delimiter, quoting):
    table = patches(saved(exported(PAGE, CHANNEL, reveal=reveal), delimiter, quoting=quoting))
    assert (table.of(PAGE), table.of(CHANNEL)) == ({}, {})


def as_spreadsheet(cells: dict[str, str]) -> None:
    cells.update(pageId="1.73256E+15", applicationId="1.09308E+15", isActive="TRUE", pageAccessToken="")


def rounded(cells: dict[str, str]) -> None:
    cells["letter"] = ""  # as release 1.1.0 exported it: named by the request's id
    cells["pageId"] = "1732555047025790"


def as_text(cells: dict[str, str]) -> None:
    cells.update(pageId='="1732555047025799"', id="'6f1c0a52-d0b1")


@pytest.mark.parametrize("spoil", [as_spreadsheet, rounded, as_text])
def test_what_a_spreadsheet_does_to_cells_by_itself_changes_nothing(spoil):
    (cells,) = exported(PAGE)
    spoil(cells)
    assert patches(saved([cells])).of(PAGE) == {}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"pageAccessToken": "new"}, {"pageAccessToken": "new"}),
        ({"pageName": "a;b", "isActive": "no"}, {"pageName": "a;b", "isActive": False}),
        ({"pageId": "42"}, {"pageId": "42"}),
        ({"pageName": ""}, {}),
    ],
)
def test_a_changed_cell_is_the_patch(changes, fields):
    (cells,) = exported(PAGE)
    cells.update(changes)
    assert patches(saved([cells], ";")).of(PAGE) == fields


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pageId": "9.9E+15"}, "pageId"),
        ({"pageName": "#REF!"}, "pageName"),
        ({"accountId": "7"}, "accountId cannot be changed"),
    ],
)
def test_a_changed_cell_that_cannot_be_trusted_leaves_the_letter_where_it_is(changes, problem):
    (cells,) = exported(PAGE)
    cells.update(changes)
    with pytest.raises(NotReplayable, match=f"^line 2: .*{problem}"):
        patches(saved([cells])).of(PAGE)


def test_a_request_that_bears_the_id_of_another_letter_gets_nothing_of_its_row():
    (cells,) = exported(PAGE)
    cells["pageName"] = "new"
    table, forged = patches(saved([cells])), letter(messenger("2"), PAGE.key)
    assert (table.of(PAGE), table.of(forged)) == ({"pageName": "new"}, {})
    selection = Selection(id=table.names)
    assert selection.keys([PAGE.facts, forged.facts]) == {PAGE.key}


def test_a_table_that_contradicts_itself_names_no_letter_or_cannot_be_read_is_told(tmp_path):
    (first,), (second,) = exported(PAGE), exported(PAGE)
    second["pageName"] = "another"
    with pytest.raises(UsageError, match=r"lines 2 and 3 are both about the letter [abcdf]"):
        patches(saved([first, second]))
    first["letter"] = first["id"] = ""
    with pytest.raises(UsageError, match=r"^letters.csv: line 2 has no letter id"):
        patches(saved([first]))
    with pytest.raises(UsageError, match=r"^nowhere.csv"):
        read_patches("nowhere.csv")
    damaged = bytearray(gzip.compress(HEADER))
    damaged[-8] ^= 1
    (tmp_path / "a.csv.gz").write_bytes(damaged)
    with pytest.raises(UsageError, match=r"a.csv.gz: the compressed file is damaged"):
        read_patches(str(tmp_path / "a.csv.gz"))


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"ottPlatformAttributes": 7}', b'{"a": {"b": 1}}'])
def test_a_letter_that_is_no_registration_has_a_row_all_the_same(body):
    (cells,) = exported(letter(body))
    assert (cells["id"], cells["pageId"]) == ("6f1c0a52-d0b1", "")


NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MICROSECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", datetime(2026, 11, 23, 11, 58, 30, tzinfo=UTC)),
        ("15m", datetime(2026, 11, 23, 11, 45, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 23, 10, 30, tzinfo=UTC)),
        ("3d", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("1w", datetime(2026, 11, 16, 12, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-23T10:00:00.25Z", datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_absolute_in_utc_or_a_while_ago(text, expected):
    assert moment(text, "--since", lambda: NOON) == int(expected.timestamp() * MICROSECOND)


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "-1h", "2026-13-01"])
def test_another_time_is_wrong_usage(text):
    with pytest.raises(UsageError, match="--until must be a time"):
        moment(text, "--until")


def test_a_patch_sets_attributes_the_platform_and_flags():
    fields = parse(["ottPlatformName=messenger", "pageName=a=b", "isActive=false"])
    assert fields == {"ottPlatformName": "messenger", "pageName": "a=b", "isActive": False}
    body, resource = Patches(fields).apply(letter(messenger("p", "old")), 10_000)
    assert resource == Resource("510000001", "messenger", "p")
    assert b'"pageName":"a=b"' in body


def test_a_patch_keeps_unknown_fields_and_the_order_of_the_rest():
    body = b'{"zebra":1,"ottPlatformName":"messenger","ottPlatformAttributes":' + (
        str(MESSENGER["ottPlatformAttributes"]).replace("'", '"').replace("True", "true").encode() + b"}"
    )
    patched, _ = Patches(parse(["pageName=new"])).apply(letter(body), 10_000)
    assert patched.startswith(b'{"zebra":1,"ottPlatformName":"messenger"')


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"no json", "The body is not valid JSON."),
        (b"{}", "EndpointUrl must be provided"),
        (b'{"ottPlatformAttributes": 5, "ottPlatformName": "messenger"}', "EndpointUrl must be provided"),
        (b'{"ottPlatformAttributes": 5, "ottPlatformName": "line"}', "line has no pageName"),
        (messenger("x" * 500), "The body is larger than 500 bytes"),
    ],
)
def test_what_is_still_wrong_is_told_in_the_words_of_the_api(body, problem):
    with pytest.raises(NotReplayable) as refused:
        Patches(parse(["pageName=new"])).apply(letter(body), 500)
    assert problem in str(refused.value)


def test_a_value_comes_from_a_file(tmp_path):
    Path(tmp_path / "token").write_text("\ufeffsecret\r\n")
    assert parse([f"pageAccessToken=@{tmp_path / 'token'}"]) == {"pageAccessToken": "secret"}
    with pytest.raises(UsageError, match="@/dev/stdin reads a value from standard input"):
        parse(["pageName=-"])


def test_an_error_never_holds_a_value():
    with pytest.raises(UsageError) as error:
        parse([f"accessToken={LINE['ottPlatformAttributes']['channelSecret']}"])
    assert LINE["ottPlatformAttributes"]["channelSecret"] not in str(error.value)
