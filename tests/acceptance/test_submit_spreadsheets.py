"""`ott-worker submit` with files that come from spreadsheets, are corrected there, and come back."""

import csv
import gzip
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from tests.acceptance.submit_command import (
    ATTRIBUTES,
    HEADER,
    Command,
    ended,
    lines,
    pages_called,
    told,
    write_pages,
)
from tests.rig import messenger, until, worker_status
from tests.sandbox_faults import Latency
from worker.contract.status import Pause
from worker.files.workbook import Workbook, write
from worker.settings import Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
OFFLINE = Settings(amqp_url="amqp://127.0.0.1:1/")


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def save(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    """As a spreadsheet does: without a mark, with its own delimiter and line ends."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def page(page_id: str, **more: Any) -> dict[str, str]:
    own = {"pageId": page_id, "pageAccessToken": f"token-of-{page_id}"}
    return {name: str(value) for name, value in {**ATTRIBUTES, **own, **more}.items()}


def write_three(path: Path) -> None:
    """A page that is well, one without its name, and one whose id a spreadsheet has spoilt."""
    save(path, [page("1"), page("2", pageName=""), page("1.73256E+15")], ";")


async def test_rows_that_failed_come_back_with_their_error_and_are_corrected_and_submitted_again(
    submit, rig, tmp_path
):
    write_three(tmp_path / "pages.csv")
    end = await submit("pages.csv", "--platform", "messenger", "--failed", "failed.csv")
    assert end.code == 1
    assert end.err == ""
    failed = rows_of(tmp_path / "failed.csv", ";")
    assert [(row["line"], row["error"]) for row in failed] == [
        ("3", "PageName must be provided"),
        (
            "4",
            'pageId "1.73256E+15" is in scientific notation, which has lost digits; '
            "allowed: digits only (0 to 9)",
        ),
    ]
    assert {name: failed[0][name] for name in ATTRIBUTES} == page("2", pageName="")
    assert stat.S_IMODE((tmp_path / "failed.csv").stat().st_mode) == 0o600
    assert pages_called(rig) == ["1"]

    corrected = [{**failed[0], "pageName": "Support"}, {**failed[1], "pageId": "1732555047025799"}]
    save(tmp_path / "failed.csv", corrected, "\t")
    end = await submit("failed.csv", "--platform", "messenger", "--failed", "again.csv")
    assert (end.code, end.err) == (0, "")
    assert sorted(pages_called(rig)) == ["1", "1732555047025799", "2"]
    assert rows_of(tmp_path / "again.csv", "\t") == []
    await submit("pages.csv", "--platform", "messenger", "--send-damaged")
    assert pages_called(rig).count("1.73256E+15") == 1


async def test_a_job_that_cannot_begin_leaves_the_failed_rows_of_an_earlier_run(submit, tmp_path):
    write_three(tmp_path / "pages.csv")
    given = ("pages.csv", "--platform", "messenger", "--results", "r.jsonl", "--failed", "failed.csv")
    assert (await submit(*given)).code == 1
    before = (tmp_path / "failed.csv").read_bytes()
    assert (await Command(OFFLINE)(*given, "--resume")).code == 3
    assert (tmp_path / "failed.csv").read_bytes() == before


async def test_rows_of_two_jobs_are_not_taken_for_one(tmp_path):
    back = {"error": "", "line": "7"}
    save(tmp_path / "failed.csv", [{**back, "row": "2", **page("1")}, {**back, "row": "4", **page("2")}])
    save(tmp_path / "pages.csv", [page("3"), page("4")])
    end = await Command(OFFLINE)("failed.csv", "pages.csv", "--platform", "messenger")
    assert (end.code, end.out) == (2, "")
    assert end.err.startswith("ott-worker: pages.csv row 3 (line 3) is row 4, and so is another one")


@pytest.mark.parametrize("results", ["results.jsonl", "results.csv"])
async def test_resume_takes_an_input_that_holds_only_the_corrected_rows(submit, rig, tmp_path, results):
    write_three(tmp_path / "pages.csv")
    first = ("--platform", "messenger", "--results", results, "--failed", "failed.csv")
    assert (await submit("pages.csv", *first)).code == 1
    failed = rows_of(tmp_path / "failed.csv", ";")
    corrected = [{**failed[0], "pageName": "Support"}, {**failed[1], "pageId": "1732555047025799"}]
    save(tmp_path / "failed.csv", corrected, ";")
    end = await submit("failed.csv", "--platform", "messenger", "--results", results, "--resume")
    assert (end.code, end.err) == (0, "")
    assert sorted(pages_called(rig)) == ["1", "1732555047025799", "2"]
    written = (rows_of if results.endswith(".csv") else lines)(tmp_path / results)
    assert sorted((int(line["row"]), line["status"], line["resourceId"]) for line in written) == [
        (1, "registered", "1"),
        (2, "registered", "2"),
        (3, "registered", "1732555047025799"),
    ]


async def test_results_that_a_spreadsheet_has_saved_are_taken_back(submit, rig, tmp_path):
    ids = ["1732555047025799", "1732555047025800", "1732555047025801"]
    save(tmp_path / "pages.csv", [page(ids[0]), page(ids[1], pageName=""), page(ids[2])])
    given = ("pages.csv", "--platform", "messenger", "--results", "results.csv")
    assert (await submit(*given)).code == 1
    assert (tmp_path / "results.csv").read_bytes().startswith(b"\xef\xbb\xbfrow,")
    saved = [{**row, "resourceId": "1.73256E+15"} for row in rows_of(tmp_path / "results.csv")]
    save(tmp_path / "results.csv", saved, ";")
    save(tmp_path / "pages.csv", [page(ids[0]), page(ids[1], pageName="Support"), page(ids[2])])
    end = await submit(*given, "--resume")
    assert (end.code, end.err) == (0, "")
    assert sorted(pages_called(rig)) == ids
    assert (tmp_path / "results.csv").read_bytes().startswith(b"\xef\xbb\xbfrow,")
    written = rows_of(tmp_path / "results.csv")
    assert sorted((line["row"], line["status"], line["line"]) for line in written) == [
        ("1", "registered", "2"),
        ("2", "registered", "3"),
        ("3", "registered", "4"),
    ]


async def test_it_warns_once_of_what_the_author_may_not_expect(submit, tmp_path):
    rows = [{**page("1"), "Notes": "a"}, {**page("1", endpointUrl="none"), "Notes": "b"}]
    save(tmp_path / "pages.csv", rows)
    end = await submit("pages.csv", "--platform", "messenger")
    assert end.code == 0
    assert end.err.splitlines() == [
        "ott-worker: pages.csv: columns without an attribute are left out (--send-unknown sends them): Notes",
        "ott-worker: messenger 1 is in 2 rows, and the last one wins: pages.csv row 2 (line 2), "
        "pages.csv row 3 (line 3)",
        'ott-worker: endpointUrl is not a URL (http:// or https://): "none" in pages.csv row 3 (line 3)',
    ]


async def test_failed_rows_of_json_come_back_as_json_lines(submit, rig, tmp_path):
    (tmp_path / "pages.json").write_bytes(b"[" + messenger("1") + b",\n" + messenger("2", "") + b"]")
    assert (await submit("pages.json", "--failed", "failed.jsonl")).code == 1
    (failed,) = lines(tmp_path / "failed.jsonl")
    assert (failed["line"], failed["error"]) == (2, "PageName must be provided")
    text = (tmp_path / "failed.jsonl").read_text().replace('"pageName": ""', '"pageName": "Support"')
    (tmp_path / "failed.jsonl").write_text(text)
    assert (await submit("failed.jsonl")).code == 0
    call = rig.sandbox.history.registration_calls[-1]
    assert call.body is not None
    assert sorted(call.body) == ["ottPlatformAttributes", "ottPlatformName"]


async def test_check_is_the_page_on_which_a_file_is_corrected(tmp_path):
    rows = [page("1"), page("2", isActive="WAHR"), page("1.73256E+15"), page("4", isActive="maybe")]
    save(tmp_path / "pages.csv", [{**row, "Notes": ""} for row in rows], ";")
    end = await Command(OFFLINE)("pages.csv", "--platform", "messenger", "--check", "--failed", "failed.csv")
    assert (end.code, end.err) == (1, "")
    assert (
        end.out
        == """\
IsActive is invalid: 2 rows
  Allowed: true or false, yes or no, y or n, on or off, 1 or 0.
  To do: Enter one of the allowed values.
    pages.csv row 3 (line 3), column isActive: "WAHR"
    pages.csv row 5 (line 5), column isActive: "maybe"

pageId is in scientific notation, which has lost digits: 1 row
  Allowed: digits only (0 to 9).
  To do: Format the column as Text, then enter the id again as its source has it.
    pages.csv row 4 (line 4), column pageId: "1.73256E+15"

Warning: pages.csv: columns without an attribute are left out (--send-unknown sends them): Notes
4 rows: 1 valid, 3 invalid.
"""
    )
    assert [row["line"] for row in rows_of(tmp_path / "failed.csv", ";")] == ["3", "4", "5"]


@pytest.mark.parametrize(("part", "rows"), [(0.5, 400), (0.001, 0)])
async def test_check_tells_what_it_has_found_before_a_file_cannot_be_read_any_further(tmp_path, part, rows):
    packed = gzip.compress(write_pages(tmp_path / "pages.csv", range(1000), pageName="").read_bytes())
    (tmp_path / "pages.csv.gz").write_bytes(packed[: int(len(packed) * part)])
    end = await Command(OFFLINE)("pages.csv.gz", "--check", "--failed", "failed.csv")
    assert (end.code, end.err.count("\n")) == (1, 1)
    assert ": the compressed file ends too early: is it complete?" in end.err
    found = int(end.out.splitlines()[-1].split()[0])
    assert found >= rows
    assert end.out.count("PageName must be provided") == bool(rows)
    assert (tmp_path / "failed.csv").exists() == bool(found)
    assert not found or len(rows_of(tmp_path / "failed.csv")) == found


def with_another_checksum(path: Path) -> None:
    """As a disk or a transfer damages a file: what it holds is read, and then found not to be what was
    written."""
    content = bytearray(path.read_bytes())
    of_sheet = content.rfind(b"xl/worksheets/sheet1.xml") - 30  # in the directory of the archive
    content[-8 if path.suffix == ".gz" else of_sheet] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["pages.csv.gz", "pages.xlsx"])
async def test_of_a_damaged_file_nothing_is_sent_and_check_tells_what_it_has_found(tmp_path, name):
    pages = write_pages(tmp_path / "pages.csv", range(1000), pageName="")
    (tmp_path / "pages.csv.gz").write_bytes(gzip.compress(pages.read_bytes(), 0))
    with (tmp_path / "pages.xlsx").open("w+b") as file:
        write(file, csv.reader(pages.open()))
    with_another_checksum(tmp_path / name)
    command = Command(OFFLINE)
    for end in (await command(name), await command(name, "--check")):
        assert (end.code, end.err.count("\n"), "is damaged: " in end.err) == (1, 1, True)
    assert end.out.count("PageName must be provided") == 1


@pytest.mark.parametrize("more", [["--check"], []])
async def test_a_file_whose_rows_name_no_platform_is_told_what_is_missing(more):
    end = await Command(OFFLINE)(EXAMPLES / "pages.csv", *more)
    assert (end.code, end.out) == (2, "")
    assert "the column ottPlatformName is missing: use --platform messenger" in end.err


@pytest.mark.parametrize(
    ("platform", "header"),
    [(["--platform", "messenger"], HEADER), ([], [*HEADER, "channelId", "isTestChannel"])],
)
async def test_the_template_is_the_header_of_a_file(tmp_path, platform, header):
    end = await Command(OFFLINE)("--template", *platform)
    assert end.code == 0
    assert set(header) <= set(end.out.strip().split(","))
    (tmp_path / "pages.csv").write_text(end.out)
    checked = await Command(OFFLINE)("pages.csv", "--check")
    assert (checked.code, checked.out) == (0, "0 rows: 0 valid, 0 invalid.\n")


async def test_it_says_that_the_worker_is_paused_and_why(submit, rig, tmp_path, prefix):
    rig.sandbox.faults.add(Latency(path="registration", seconds=8))
    write_pages(tmp_path / "pages.csv", [1])
    process = await submit.start("pages.csv")
    await until(lambda: pages_called(rig) == ["1"])
    why = "Marketing Cloud is upgraded"
    status = worker_status(paused=Pause(by="kim@host", why=why, since=datetime.now(UTC)))
    exchange = rig.requester.channel.default_exchange
    await exchange.publish(aio_pika.Message(status.to_json()), f"{prefix}.status")
    await told(process, "Paused by kim@host: Marketing Cloud is upgraded.")
    end = await ended(process)
    assert end.out.endswith("1 registered.\n")


async def test_rows_of_an_old_file_undo_nothing_newer_and_can_be_sent_all_the_same(submit, rig, tmp_path):
    save(tmp_path / "pages.csv", [page("1", pageName="Monday"), page("2")])
    os.utime(tmp_path / "pages.csv", (1_700_000_000, 1_700_000_000))
    await rig.requester.ask(messenger("1", "Wednesday"))
    given = ("pages.csv", "--platform", "messenger", "--results", "r.jsonl")
    end = await submit(*given)
    assert (end.code, end.err) == (0, "")
    assert ": 1 registered, 1 superseded." in end.out
    assert "1 row superseded by a newer registration of the page or channel (row 2). " in end.out
    assert pages_called(rig) == ["1", "2"]
    end = await submit(*given, "--resume", "--as-of", "now")
    assert (end.code, end.err) == (0, "")
    assert pages_called(rig) == ["1", "2", "1"]


async def test_failed_rows_come_back_as_a_workbook_and_replace_nothing_foreign(submit, tmp_path):
    save(tmp_path / "pages.csv", [page("1"), page("1732555047025799", pageName="")])
    (tmp_path / "mine.xlsx").write_bytes((EXAMPLES / "files" / "bad_colour.xlsx").read_bytes())
    (tmp_path / "mine.csv").write_text("my own\n")
    for foreign in ("mine.xlsx", "mine.csv"):
        end = await submit("pages.csv", "--platform", "messenger", "--failed", foreign)
        assert (end.code, "--failed did not write" in end.err) == (2, True)
    results = ("--platform", "messenger", "--results", "r.jsonl")
    for _ in range(2):  # the second time over the file of the first
        end = await submit("pages.csv", *results, "--failed", "failed.xlsx", "--resume")
        assert end.code == 1
    with (tmp_path / "failed.xlsx").open("rb") as file:
        header, row = (cells for *_, cells in Workbook(file).rows())
        assert row[:3] == ["PageName must be provided", "3", "2"]
        assert row[header.index("pageId")] == "1732555047025799"
        row[header.index("pageName")] = "Support"
    with (tmp_path / "corrected.xlsx").open("w+b") as file:
        write(file, [header, row])
    end = await submit("corrected.xlsx", *results, "--resume")
    assert (end.code, end.err) == (0, "")
    assert sorted((line["row"], line["status"]) for line in lines(tmp_path / "r.jsonl")) == [
        (1, "registered"),
        (2, "registered"),
    ]


async def test_each_row_may_name_its_business_unit(submit, rig, tmp_path):
    save(tmp_path / "pages.csv", [{**page("1"), "MID": "510001"}, {**page("1"), "MID": ""}])
    end = await submit("pages.csv", "--platform", "messenger", "--account", "510002")
    assert (end.code, end.err) == (0, "")
    called = rig.sandbox.history.registration_calls
    assert sorted((call.account, call.resource_id) for call in called) == [("510001", "1"), ("510002", "1")]
