"""What an earlier run of the job has settled, as its results file tells, for `--resume`."""

import re
import sqlite3
from collections.abc import Iterable
from typing import Self

from worker.bulk.results import Result, one_line
from worker.errors import UsageError

_REQUEST_ID = re.compile(r"([0-9a-f]{32})-([0-9]+)\Z")


def request_id(job: str, row: int) -> str:
    """The id of a row's request: the same whenever the job is resumed."""
    return f"{job}-{row}"


def parse_request_id(text: str) -> tuple[str, int] | None:
    """The job and the row of a request id, or None if it is not of a job."""
    found = _REQUEST_ID.match(text)
    return (found[1], int(found[2])) if found else None


class Earlier:
    """The last known result of each row, in a temporary SQLite database that spills to disk: a million rows
    take no more memory than a thousand. Use as a context manager."""

    def __init__(self) -> None:
        self.job: str | None = None

    def __enter__(self) -> Self:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE result (row INTEGER PRIMARY KEY, status TEXT, resource TEXT);
            CREATE TABLE newest (resource TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID;
            CREATE TABLE again (resource TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID;
            """
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def load(self, results: Iterable[Result]) -> None:
        """Take lines in, in their order: of several for one row, the last one counts."""
        self._database.execute("BEGIN")
        for result in results:
            self.add(result)
            resource = _resource(result.platform, result.resource_id)
            if result.status == "registered" and result.row == self._newest(resource):
                self._database.execute("DELETE FROM again WHERE resource = ?", (resource,))
        self._database.execute("COMMIT")

    def add(self, result: Result) -> None:
        """Take one line in."""
        if result.request_id and (parts := parse_request_id(result.request_id)):
            self.job = parts[0]
        resource = _resource(result.platform, result.resource_id)
        execute = self._database.execute
        execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (result.row, result.status, resource))
        if result.status == "registered" and resource:
            if result.row < self._newest(resource):
                self.goes_out(result.row, result.platform, result.resource_id)
            execute(
                "INSERT INTO newest VALUES (?, ?) ON CONFLICT DO UPDATE SET row = max(row, excluded.row)",
                (resource, result.row),
            )

    def is_news(self, result: Result) -> bool:
        """Whether a repeated answer tells how a row ended, or which one of its resource is the last."""
        return (
            self._result(result.row)[0] != "registered"
            or result.row < self.newest(result.platform, result.resource_id)
            or self.must_follow(result.row, result.platform, result.resource_id)
        )

    def settled(self, row: int, platform: str | None, resource_id: str | None) -> bool:
        """Whether the row needs nothing more. Raises UsageError if it was about another resource then."""
        status, resource = self._result(row)
        if status not in ("registered", "superseded"):
            return False
        if one_line(resource or "") != one_line(_resource(platform, resource_id) or ""):
            raise UsageError(
                f"Row {row} is about another resource than the results file says, so the input has changed: "
                "name another --results file"
            )
        return True

    def goes_out(self, row: int, platform: str | None, resource_id: str | None) -> None:
        """A row goes out in this run, or was registered after a later one of its resource."""
        if resource := _resource(platform, resource_id):
            self._database.execute(
                "INSERT INTO again VALUES (?, ?) ON CONFLICT DO UPDATE SET row = min(row, excluded.row)",
                (resource, row),
            )

    def must_follow(self, row: int, platform: str | None, resource_id: str | None) -> bool:
        """Whether a row has to go out, however it ended: an earlier one of its resource went out after it,
        and would be the last."""
        resource = _resource(platform, resource_id)
        found = self._database.execute("SELECT 1 FROM again WHERE resource = ? AND row < ?", (resource, row))
        return found.fetchone() is not None

    def newest(self, platform: str | None, resource_id: str | None) -> int:
        """The last row that is registered for a resource, 0 if none is."""
        return self._newest(_resource(platform, resource_id))

    def _newest(self, resource: str | None) -> int:
        found = self._database.execute("SELECT row FROM newest WHERE resource = ?", (resource,)).fetchone()
        return int(found[0]) if found else 0

    def _result(self, row: int) -> tuple[str | None, str | None]:
        query = "SELECT status, resource FROM result WHERE row = ?"
        return self._database.execute(query, (row,)).fetchone() or (None, None)


def _resource(platform: str | None, resource_id: str | None) -> str | None:
    return f"{platform} {resource_id}" if platform and resource_id else None
