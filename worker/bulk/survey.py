"""What only many rows together show: resources that stand in several of them, ids that were rounded to one,
and what a job should be warned of (contract §12)."""

import contextlib
import difflib
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Self

from worker.bulk.readers import Reading, Row
from worker.contract.platforms import PLATFORMS
from worker.tables.cells import plain
from worker.tables.columns import FIELDS
from worker.tables.damage import ROUNDED, Problem, may_be_rounded, shown
from worker.tables.source import Unreadable

NAMED: Final = 5  # cases of one kind that a warning names
_URL = re.compile(r"https?://[^\s/?#:@]+(?::\d+)?(?:[/?#]\S*)?\Z", re.IGNORECASE)


class SurveyedRow(NamedTuple):
    """The kept part of a row. `resource` is None if the row names none or its id is damaged."""

    number: int
    resource: str | None
    account: str | None
    line: int
    file: str


class Survey:
    """Takes rows in, in a temporary SQLite database that spills to disk: a million rows take no more memory
    than a thousand. Use as a context manager."""

    def __init__(self) -> None:
        self._bad_urls = 0
        self._first_bad_urls: list[str] = []

    def __enter__(self) -> Self:
        # Rows are added in one thread, and asked for in another when it is done.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE row (
                number INTEGER PRIMARY KEY,
                resource TEXT, account TEXT, file TEXT, line INTEGER, damaged INTEGER
            );
            CREATE TABLE doubtful (id TEXT PRIMARY KEY, rows INTEGER) WITHOUT ROWID;
            BEGIN;
            """
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def take(self, reading: Reading, stopped: Callable[[], bool]) -> None:
        """Take in every row of a reading, as far as it can be read. Raises UsageError for an input that is of
        no use."""
        with contextlib.suppress(Unreadable):
            for row in reading.rows():
                if stopped():
                    return
                self.add(row)

    def add(self, row: Row) -> None:
        """Take one row in."""
        shown_id = row.shown_id
        resource = f"{row.platform} {shown_id}" if shown_id else None
        execute = self._database.execute
        about = (row.number, resource, row.account_id, row.file, row.line, bool(row.problems))
        execute("INSERT INTO row VALUES (?, ?, ?, ?, ?, ?)", about)
        if shown_id and may_be_rounded(shown_id):
            upsert = "INSERT INTO doubtful VALUES (?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1"
            execute(upsert, (resource,))
        url = row.attributes.get("endpointUrl")
        if isinstance(url, str) and url and not row.problems and not _URL.match(url):
            self._bad_urls += 1
            if len(self._first_bad_urls) < NAMED:
                value = shown("endpointUrl", url, row.secrets)
                self._first_bad_urls.append(f"{value} in {row.file} line {row.line}")

    @property
    def any(self) -> bool:
        """Whether any row was taken in."""
        return self._database.execute("SELECT 1 FROM row LIMIT 1").fetchone() is not None

    def rows(self) -> Iterator[SurveyedRow]:
        """Each row, in order."""
        query = "SELECT number, resource, account, line, file FROM row ORDER BY number"
        yield from map(SurveyedRow._make, self._database.execute(query))

    def problems(self, row: Row) -> tuple[Problem, ...]:
        """The damage in a row. An id counts as rounded only if several rows have it."""
        if not row.resource_id or not may_be_rounded(row.resource_id):
            return row.problems
        found = self._database.execute(
            "SELECT 1 FROM doubtful WHERE id = ? AND rows > 1", (f"{row.platform} {row.resource_id}",)
        )
        if found.fetchone() is None:
            return row.problems
        name = PLATFORMS[str(row.platform)].id_field
        value = shown(name, row.resource_id)
        return (*row.problems, Problem(ROUNDED, name, row.headers.get(name, name), value))

    def warnings(self, reading: Reading) -> Iterator[str]:
        """What the rows will do that their author may not expect, one line each."""
        yield from _unknown_columns(reading)
        yield from self._repeated()
        if self._bad_urls:
            more = _more(self._bad_urls)
            yield f"endpointUrl is no URL (http:// or https://): {', '.join(self._first_bad_urls)}{more}"

    def _repeated(self) -> Iterator[str]:
        query = (
            "SELECT resource, account, count(*) FROM row WHERE resource IS NOT NULL AND NOT damaged "
            "AND resource NOT IN (SELECT id FROM doubtful WHERE rows > 1) "
            "GROUP BY resource, account HAVING count(*) > 1 ORDER BY min(number)"
        )
        repeated = self._database.execute(query).fetchmany(NAMED)
        for resource, account, rows in repeated:
            places = self._database.execute(
                "SELECT file, line FROM row WHERE resource = ? AND account IS ? AND NOT damaged "
                "ORDER BY number LIMIT ?",
                (resource, account, NAMED),
            )
            named = ", ".join(f"{file} line {line}" for file, line in places)
            yield f"{resource} stands in {rows} rows, and the last one wins: {named}{_more(rows)}"
        total = self._database.execute(f"SELECT count(*) FROM ({query})").fetchone()[0]  # noqa: S608 (constant)
        if total > NAMED:
            yield f"{total - NAMED:,} more pages or channels stand in several rows; the last one wins"


def _unknown_columns(reading: Reading) -> Iterator[str]:
    for path, table in reading.tables.items():
        if unknown := table.columns.unknown:
            names = ", ".join(_with_likely_name(name) for name in unknown)
            kept = "are sent along" if reading.send_unknown else "are left out (--send-unknown sends them)"
            yield f"{path}: columns that no attribute has {kept}: {names}"


def _with_likely_name(column: str) -> str:
    likely = difflib.get_close_matches(plain(column), map(plain, FIELDS), n=1, cutoff=0.8)
    name = next((name for name in FIELDS if likely and plain(name) == likely[0]), None)
    return f"{column} (is it {name}?)" if name else column


def _more(count: int) -> str:
    return f" and {count - NAMED:,} more" if count > NAMED else ""
