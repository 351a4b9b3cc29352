"""The results file, what a later run makes of it, and what people see."""

import io
import resource
from dataclasses import replace

import pytest
from rich.console import Console

from worker.cli.submit.report import show_summary
from worker.contract.platforms import PLATFORMS
from worker.errors import UsageError, WorkerError
from worker.files.job import MOST_ERRORS, OTHER, Tally
from worker.files.job_database import JobDatabase, RowResult, request_id
from worker.files.results import Results, read_results
from worker.files.rows import Reading, Row

JOB = "0123456789abcdef0123456789abcdef"


def row(platform: str, resource_id: str, place: int = 1) -> Row:
    attributes = {PLATFORMS[platform].id_field: resource_id}
    document = {"ottPlatformName": platform, "ottPlatformAttributes": attributes}
    return Row(place, "pages.csv", 2, 2, document)


def take_in(database: JobDatabase, *results: RowResult) -> None:
    for result in results:
        database.note(result)


REGISTERED = RowResult(2, f"{JOB}-2", "registered", "messenger", "17")
REJECTED = RowResult(3, f"{JOB}-3", "rejected", None, None, ('A "name", say', "B must be provided"))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.CSV", "results"])
def test_what_is_written_can_be_read_back(tmp_path, name):
    with Results(tmp_path / name) as results:
        results.write(REGISTERED)
        results.write(REJECTED)
    assert list(read_results(tmp_path / name)) == [REGISTERED, REJECTED]


def test_a_spreadsheet_takes_no_cell_for_a_formula(tmp_path):
    with Results(tmp_path / "r.csv") as results:
        results.write(RowResult(3, f"{JOB}-3", "rejected", "messenger", "=1+1", ("+cmd",)))
    written = (tmp_path / "r.csv").read_text(encoding="utf-8-sig")
    assert ",'=1+1,'+cmd," in written


def test_a_json_line_has_the_shape_that_the_contract_fixes(tmp_path):
    with Results(tmp_path / "r.jsonl") as results:
        results.write(REGISTERED)
    assert (tmp_path / "r.jsonl").read_text() == (
        f'{{"row": 2, "requestId": "{JOB}-2", "status": "registered", "ottPlatformName": "messenger", '
        '"resourceId": "17", "errors": [], "line": null, "file": null}\n'
    )


@pytest.mark.parametrize(
    ("name", "torn"),
    [
        ("r.jsonl", '{"ro'),
        ("r.jsonl", '{"row": 9, "req'),
        ("r.jsonl", '{"row": 9, "requestId": "\udcc3'),  # half a letter
        ("r.jsonl", '{"row": 9, "requestId": "' + "x" * 10_000),
        ("r.csv", "9"),
        ("r.csv", '9,"torn'),
        ("r.csv", '9,"' + "x" * 10_000),
    ],
)
def test_a_torn_last_line_is_not_read_and_is_cut_off_before_more_is_written(tmp_path, name, torn):
    with Results(tmp_path / name) as results:
        results.write(REGISTERED)
    with (tmp_path / name).open("a", errors="surrogateescape") as file:
        file.write(torn)
    assert list(read_results(tmp_path / name)) == [REGISTERED]
    with JobDatabase() as database, Results(tmp_path / name, database) as results:
        results.write(REJECTED)
    assert list(read_results(tmp_path / name)) == [REGISTERED, REJECTED]


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
def test_a_disk_that_is_full_for_a_moment_spoils_no_line_that_follows(tmp_path, name):
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Results(tmp_path / name) as results:
        results.write(REGISTERED)
        size = (tmp_path / name).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, no_limit[1]))
        try:
            with pytest.raises(WorkerError, match="is the disk full"):
                results.write(REJECTED)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
        results.write(REJECTED)
    assert list(read_results(tmp_path / name)) == [REGISTERED, REJECTED]


def test_a_status_that_a_spreadsheet_has_changed_is_not_taken_for_a_row_that_is_still_to_be_sent(tmp_path):
    with Results(tmp_path / "r.csv") as results:
        results.write(REGISTERED)
    saved = (tmp_path / "r.csv").read_text().replace("registered", "Registered")
    (tmp_path / "r.csv").write_text(saved)
    with pytest.raises(UsageError, match="is not a results file in line 2"):
        list(read_results(tmp_path / "r.csv"))


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
@pytest.mark.parametrize("content", ['{"ottPlatformName": "line"}', "pageId,pageName", "pageId\n", "17"])
def test_what_is_no_results_file_is_neither_read_nor_cut(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match="is not a results file in line 1"):
        list(read_results(tmp_path / name))
    if not content.endswith("\n"):
        with (
            JobDatabase() as database,
            pytest.raises(UsageError, match="is not a results file"),
            Results(tmp_path / name, database),
        ):
            pass
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
@pytest.mark.parametrize("resource", ["a\tb", "a\u00a0b", "a\nb", " a "])
def test_a_settled_row_is_known_again_whatever_its_id_is_made_of(tmp_path, name, resource):
    with Results(tmp_path / name) as results:
        results.write(RowResult(1, f"{JOB}-1", "registered", "line", resource))
    with JobDatabase() as database:
        take_in(database, *read_results(tmp_path / name))
        assert database.settled_by(row("line", resource, 1)) == 1


def registered(place: int, platform: str = "line") -> RowResult:
    return RowResult(place, f"{JOB}-{place}", "registered", platform, "a")


def test_a_row_is_needless_when_a_later_one_of_its_resource_is_registered():
    with JobDatabase() as database:
        failed = RowResult(12, None, "failed", "line", "a")
        take_in(database, registered(9), failed, registered(5, "messenger"))
        assert database.settled_by(row("line", "a", 1)) == 9
        assert database.settled_by(row("line", "a", 9)) == 9
        assert database.settled_by(row("line", "a", 10)) is None
        assert database.settled_by(row("line", "a", 12)) is None
        assert database.settled_by(row("messenger", "a", 1)) == 5
        assert database.settled_by(row("line", "b", 1)) is None


@pytest.mark.parametrize(
    ("order", "settled"), [((9, 4), [4, None]), ((9, 4, 9), [4, 9]), ((4, 9), [4, 9]), ((9, 4, 12), [4, 9])]
)
def test_rows_that_were_registered_in_another_order_are_followed_by_the_later_one(order, settled):
    with JobDatabase() as database:
        take_in(database, *map(registered, order))
        assert [database.settled_by(row("line", "a", place)) for place in (4, 9)] == settled


def test_a_later_row_that_is_not_in_the_input_is_known_by_the_id_of_its_request():
    first, second, later = (
        replace(row("line", "1732555047025811", place), account_id=account)
        for place, account in ((1, "510001"), (2, "510002"), (3, "510001"))
    )
    with JobDatabase() as database:
        database.add(first)
        database.add(second)
        rounded = RowResult(3, request_id(JOB, later, "510001"), "registered", "line", "1.73256E+15")
        take_in(database, rounded)
        assert database.job == JOB
        assert (database.settled_by(first), database.settled_by(second)) == (3, None)


def test_a_later_row_of_an_older_file_makes_no_row_needless():
    with JobDatabase() as database:
        newer, older = replace(row("line", "a", 4), true_at=9), replace(row("line", "a", 9), true_at=3)
        database.add(newer)
        database.add(older)
        take_in(database, registered(9))
        assert (database.settled_by(newer), database.settled_by(older)) == (None, 9)
        database.mark_sent(newer, f"{JOB}-4")
        take_in(database, registered(4))
        assert (database.settled_by(newer), database.settled_by(older)) == (4, 9)
        (warning,) = database.warnings(Reading(("newer.csv", "older.csv")))
        assert "2 rows, and the last one of the file that was changed last wins: " in warning


def test_a_row_follows_an_earlier_one_that_goes_out_again():
    with JobDatabase() as database:
        database.add(row("line", "a", 4))
        take_in(database, registered(4), registered(9))
        database.mark_sent(row("line", "a", 4), f"{JOB}-4")
        take_in(database, registered(4), registered(9))
        assert database.settled_by(row("line", "a", 9)) is None


def test_a_row_that_was_about_another_resource_is_told():
    with JobDatabase() as database:
        take_in(database, registered(1))
        with pytest.raises(UsageError, match="Row 1 has another resource"):
            database.settled_by(row("line", "b", 1))


def test_a_tally_takes_no_more_room_for_a_million_different_errors():
    tally = Tally()
    for row in range(MOST_ERRORS + 50):
        tally.add(RowResult(row, None, "failed", errors=(f"error {row}",)), str(row))
    assert len(tally.errors()) == MOST_ERRORS + 1
    _, error, group = tally.errors()[0]
    assert (error, group.count) == (OTHER, 50)
    assert len(group.places) == group.most


@pytest.mark.parametrize("columns", [80, 120])
def test_the_summary_fits_the_terminal(columns):
    tally = Tally(read=100_000)
    tally.add(
        RowResult(99_999, None, "failed", errors=("The gateway of this business unit is " + "very " * 20,)),
        "99999",
    )
    tally.statuses.update(registered=99_999)
    text = io.StringIO()
    console = Console(file=text, width=columns, force_terminal=True, color_system=None)
    show_summary(console, tally, 0, 112.0, wait=True)
    shown = text.getvalue().splitlines()
    assert shown[0] == "100,000 rows read in 0:01:52, 893 rows/s: 99,999 registered, 1 failed."
    assert shown[1].split() == ["Status", "Rows", "Error", "First", "rows"]
    assert max(map(len, shown)) <= columns
    assert "99999" in shown[2]


@pytest.mark.parametrize(
    ("wait", "text"), [(True, "3 published and not answered"), (False, "0 published, 3 not confirmed by the")]
)
def test_the_summary_tells_what_is_still_out(*, wait, text):
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    show_summary(console, Tally(read=3), 3, 1.0, wait=wait)
    assert shown.getvalue().startswith(f"3 rows read in 0:00:01, 0 rows/s: {text}")
