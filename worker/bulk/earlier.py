"""What earlier runs of the job have settled, as its results file tells, for `--resume`."""

import re
import sqlite3
from collections.abc import Iterable
from decimal import Decimal, localcontext
from typing import Self

from worker.bulk.readers import Row
from worker.bulk.results import SETTLED, RowResult, one_line
from worker.bulk.survey import Survey
from worker.errors import UsageError
from worker.tables.damage import EXACT_DIGITS, may_be_rounded

_REQUEST_ID = re.compile(r"([0-9a-f]{32})-([0-9]+)\Z")
_SCIENTIFIC = re.compile(r"\d(?:[.,](\d+))?E\+\d+\Z")


def request_id(job: str, row: int) -> str:
    """The id of a row's request: the same whenever the job is resumed."""
    return f"{job}-{row}"


def parse_request_id(text: str) -> tuple[str, int] | None:
    """The job and the row of a request id, or None if it is not of a job."""
    found = _REQUEST_ID.match(text)
    return (found[1], int(found[2])) if found else None


class Earlier:
    """The last known result of each row of the job, in a temporary SQLite database that spills to disk: a
    million rows take no more memory than a thousand. Use as a context manager."""

    def __init__(self) -> None:
        self.job: str | None = None

    def __enter__(self) -> Self:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE result (row INTEGER PRIMARY KEY, status TEXT, resource TEXT);
            CREATE TABLE newest (resource TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID;
            CREATE TABLE again (resource TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID;
            CREATE TABLE place (number INTEGER PRIMARY KEY, row INTEGER UNIQUE);
            CREATE TABLE known (
                row INTEGER PRIMARY KEY, resource TEXT, account TEXT, line INTEGER, file TEXT
            );
            CREATE VIEW free AS
                SELECT * FROM result WHERE NOT EXISTS (SELECT 1 FROM place WHERE place.row = result.row);
            CREATE INDEX by_resource ON result (resource);
            """
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def match(self, results: Iterable[RowResult], survey: Survey) -> None:
        """Find out which row of the job each row of the input is. The input may be the whole one, also with
        corrections, and also if a spreadsheet has damaged the ids in the results. It may be a part of the
        rows, such as those that failed. Raises UsageError for any other input. Comes before `load`."""
        execute = self._database.execute
        execute("BEGIN")
        for result in results:
            resource = _resource(result.platform, result.resource_id)
            execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (result.row, result.status, resource))
        if not self._is_whole(survey):
            self._find_places(survey)
        for row in survey.rows():
            execute("INSERT INTO known VALUES (?, ?, ?, ?, ?)", (self.place(row.number), *row[1:]))
        execute("COMMIT")

    def load(self, results: Iterable[RowResult]) -> None:
        """Take lines in, in their order: of several for one row, the last one counts."""
        self._database.execute("BEGIN")
        for result in results:
            self.add(result)
            key = self._key_of(result)
            if result.status == "registered" and result.row == self._newest(key):
                self._database.execute("DELETE FROM again WHERE resource = ?", (key,))
        self._database.execute("COMMIT")

    def add(self, result: RowResult) -> None:
        """Take one line in."""
        if result.request_id and (parts := parse_request_id(result.request_id)):
            self.job = parts[0]
        resource = _resource(result.platform, result.resource_id)
        execute = self._database.execute
        execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (result.row, result.status, resource))
        key = self._key_of(result)
        if result.status == "registered" and key:
            if result.row < self._newest(key):
                self._goes_out(result.row, key)
            execute(
                "INSERT INTO newest VALUES (?, ?) ON CONFLICT DO UPDATE SET row = max(row, excluded.row)",
                (key, result.row),
            )

    def place(self, number: int) -> int:
        """Which row of the job a row of the input is."""
        found = self._database.execute("SELECT row FROM place WHERE number = ?", (number,)).fetchone()
        return int(found[0]) if found else number

    def where(self, place: int) -> tuple[int | None, str | None]:
        """The line and the file in which a row of the job stands, as far as the input holds it."""
        found = self._database.execute("SELECT line, file FROM known WHERE row = ?", (place,)).fetchone()
        return found or (None, None)

    def is_news(self, result: RowResult) -> bool:
        """Whether a repeated answer tells how a row ended, or which one of its resource is the last."""
        key = self._key_of(result)
        return (
            self._result(result.row)[0] != "registered"
            or result.row < self._newest(key)
            or self._must_follow(result.row, key)
        )

    def settled(self, place: int, row: Row) -> bool:
        """Whether the row needs nothing more. Raises UsageError if it was about another resource then."""
        status, resource = self._result(place)
        if status not in SETTLED:
            return False
        if not row.problems and not is_same(resource, _resource(row.platform, row.resource_id)):
            raise _another_input(place)
        return True

    def goes_out(self, place: int, row: Row) -> None:
        """A row goes out in this run."""
        if key := _key(row):
            self._goes_out(place, key)

    def must_follow(self, place: int, row: Row) -> bool:
        """Whether a row has to go out, however it ended: an earlier one of its resource went out after it,
        and would be the last."""
        return self._must_follow(place, _key(row))

    def newest(self, row: Row) -> int:
        """The last row of the job that is registered for the row's resource, 0 if none is."""
        return self._newest(_key(row))

    def _is_whole(self, survey: Survey) -> bool:
        """Whether the input has a row for each one of the results, the settled ones for the same resource."""
        last = self._database.execute("SELECT max(row) FROM result").fetchone()[0] or 0
        rows = 0
        for row in survey.rows():
            rows = row.number
            status, settled_for = self._result(rows)
            if status in SETTLED and row.resource and not is_same(settled_for, row.resource):
                return False
        return rows >= last

    def _find_places(self, survey: Survey) -> None:
        """First each row that has the resource of a result, then the others, in order, for what is open. A
        part may hold rows that are new; in an input of the same size, that tells another one."""
        execute = self._database.execute
        last = execute("SELECT max(row) FROM result").fetchone()[0] or 0
        same = "SELECT row FROM free WHERE resource = ? ORDER BY row LIMIT 1"
        rows = 0
        for row in survey.rows():
            rows = row.number
            if found := execute(same, (row.resource,)).fetchone():
                execute("INSERT INTO place VALUES (?, ?)", (rows, found[0]))
        open_rows = execute(
            "SELECT row FROM free WHERE status NOT IN ('registered', 'superseded') ORDER BY row"
        )
        new = last
        for number in range(1, rows + 1):
            if execute("SELECT 1 FROM place WHERE number = ?", (number,)).fetchone():
                continue
            found = open_rows.fetchone()
            if found is None:
                if rows >= last:
                    raise _another_input(number)
                new += 1
            execute("INSERT INTO place VALUES (?, ?)", (number, found[0] if found else new))

    def _goes_out(self, row: int, key: str) -> None:
        self._database.execute(
            "INSERT INTO again VALUES (?, ?) ON CONFLICT DO UPDATE SET row = min(row, excluded.row)",
            (key, row),
        )

    def _must_follow(self, row: int, key: str | None) -> bool:
        found = self._database.execute("SELECT 1 FROM again WHERE resource = ? AND row < ?", (key, row))
        return found.fetchone() is not None

    def _newest(self, key: str | None) -> int:
        found = self._database.execute("SELECT row FROM newest WHERE resource = ?", (key,)).fetchone()
        return int(found[0]) if found else 0

    def _result(self, row: int) -> tuple[str | None, str | None]:
        query = "SELECT status, resource FROM result WHERE row = ?"
        return self._database.execute(query, (row,)).fetchone() or (None, None)

    def _key_of(self, result: RowResult) -> str | None:
        """The resource of a result; its id and its account as the input has them, where that is known."""
        resource = _resource(result.platform, result.resource_id)
        known = self._database.execute("SELECT resource, account FROM known WHERE row = ?", (result.row,))
        if (found := known.fetchone()) and is_same(resource, found[0]):
            return _of_account(*found)
        return resource


def is_same(saved: str | None, resource: str | None) -> bool:
    """Whether a resource of the results is that of the input. A spreadsheet that saved the results may have
    rounded its id."""
    saved, resource = one_line(saved or ""), one_line(resource or "")
    (platform, _, written), (of, _, exact) = saved.partition(" "), resource.partition(" ")
    if saved == resource or platform != of or not exact.isdigit():
        return saved == resource
    if digits := _SCIENTIFIC.match(written):
        with localcontext() as context:
            context.prec = len(digits[1] or "") + 1
            return +Decimal(exact) == Decimal(written.replace(",", "."))
    kept = EXACT_DIGITS - 1  # the last digit may be rounded up
    return may_be_rounded(written) and len(written) == len(exact) and written[:kept] == exact[:kept]


def _another_input(row: int) -> UsageError:
    return UsageError(
        f"Row {row} is about another resource than the results file says, so the input has changed: "
        "name another --results file"
    )


def _key(row: Row) -> str | None:
    return _of_account(_resource(row.platform, row.resource_id), row.account_id)


def _of_account(resource: str | None, account: str | None) -> str | None:
    return f"{resource} of account {account}" if resource and account else resource


def _resource(platform: str | None, resource_id: str | None) -> str | None:
    return f"{platform} {resource_id}" if platform and resource_id else None
