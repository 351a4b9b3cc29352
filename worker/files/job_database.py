"""The rows of a job, in one temporary SQLite database that spills to disk: a million rows take no more memory
than a thousand.

It tells what only many rows together show (contract §12), what earlier runs of the job have settled
(`--resume`), and keeps the rows that are given back (`--failed`).
"""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, Final, Self

from worker.contract.platforms import ID_FIELDS, PLATFORMS
from worker.errors import UsageError
from worker.files.cells import printable
from worker.files.damage import (
    ALL_END_IN_0,
    EXACT_DIGITS,
    RESOURCE_IDS,
    ROUNDED,
    Problem,
    ends_in_0,
    is_rounded,
    may_be_rounded,
    shown,
)
from worker.files.results import SETTLED, FailedRow, RowResult, one_line
from worker.files.rows import Reading, Row
from worker.files.source import Unreadable

NAMED: Final = 5  # cases of one kind that a warning names
FEWEST_ROUNDED: Final = 3  # different ids that all end in 0, before that is no chance

_REQUEST_ID = re.compile(r"([0-9a-f]{32})-([0-9]+)\Z")
_URL = re.compile(r"https?://[^\s/?#:@]+(?::\d+)?(?:[/?#]\S*)?\Z", re.IGNORECASE)
_QUOTES = "\u201c\u201d\u201e\u201f\xab\xbb\u2018\u2019\u201a"
_TOKEN: Final = "pageAccessToken"  # noqa: S105 (a name)

_TABLES = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE row (
        number INTEGER PRIMARY KEY, place INTEGER, resource TEXT, account TEXT, file TEXT, line INTEGER,
        shown TEXT, damaged INTEGER, token TEXT
    );
    CREATE INDEX by_place ON row (place);
    CREATE TABLE id (field TEXT, value TEXT, rows INTEGER, PRIMARY KEY (field, value)) WITHOUT ROWID;
    CREATE TABLE result (place INTEGER PRIMARY KEY, status TEXT, resource TEXT);
    CREATE TABLE newest (resource TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID;
    CREATE TABLE again (resource TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID;
    CREATE TABLE failed (
        place INTEGER PRIMARY KEY, file TEXT, line INTEGER, cells TEXT, body BLOB, error TEXT
    );
    BEGIN;
"""
_NEWEST = "INSERT INTO newest VALUES (?, ?) ON CONFLICT DO UPDATE SET place = max(place, excluded.place)"
_OLDEST = "INSERT INTO again VALUES (?, ?) ON CONFLICT DO UPDATE SET place = min(place, excluded.place)"


def request_id(job: str, row: int) -> str:
    """The id of a row's request: the same whenever the job is resumed."""
    return f"{job}-{row}"


def parse_request_id(text: str) -> tuple[str, int] | None:
    """The job and the row of a request id, or None if it is not of a job."""
    found = _REQUEST_ID.match(text)
    return (found[1], int(found[2])) if found else None


class JobDatabase:
    """One job's rows. Use as a context manager. `job` is the job that the results of earlier runs name."""

    def __init__(self) -> None:
        self.job: str | None = None
        self._cases: dict[str, list[str]] = {}  # of a warning, the places of the first ones
        self._counts: dict[str, int] = {}
        self._exact: set[str] = set()  # fields with a long id that does not end in 0

    def __enter__(self) -> Self:
        # Rows are added in one thread, and asked for in another when it is done.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_TABLES)
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _first(self, query: str, *given: object) -> Any:
        return self._database.execute(query, given).fetchone()

    # What many rows together show

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
        shown_id, execute = row.shown_id, self._database.execute
        resource = _resource(row.platform, shown_id)
        damaged = bool(row.problems)
        token = row.attributes.get(_TOKEN)
        about = (row.number, row.place, resource, row.account_id, row.file, row.line, row.where(), damaged)
        kept = token if isinstance(token, str) and token and not damaged else None
        execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*about, kept))
        for name in ID_FIELDS & row.attributes.keys():
            value = row.attributes[name]
            if isinstance(value, str) and len(value) > EXACT_DIGITS and value.isdigit():
                count = "INSERT INTO id VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1"
                execute(count, (name, value))
                if not value.endswith("0"):
                    self._exact.add(name)
        if not damaged:
            self._look_at(row)

    def _look_at(self, row: Row) -> None:
        for name, value in row.attributes.items():
            if not isinstance(value, str) or not value:
                continue
            if name == "endpointUrl" and not _URL.match(value):
                self._case("endpointUrl is no URL (http:// or https://)", row, name)
            if value[0] in _QUOTES or value[-1] in _QUOTES:
                self._case("curly quotes stand around a value, and are sent", row, name)
            if not value.isascii() and _is_decoded_wrongly(value):
                self._case("text looks as if it was decoded wrongly", row, name)

    def _case(self, what: str, row: Row, name: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1
        cases = self._cases.setdefault(what, [])
        if len(cases) < NAMED:
            cases.append(f"{shown(name, row.attributes[name], row.secrets)} in {row.where(name)}")

    def problems(self, row: Row) -> tuple[Problem, ...]:
        """The damage in a row, as far as the rows that were taken in show it."""
        found = list(row.problems)
        for name in ID_FIELDS & row.attributes.keys() - {problem.field for problem in found}:
            value = row.attributes[name]
            if not isinstance(value, str) or not ends_in_0(value):
                continue
            kind = None
            if name in RESOURCE_IDS and self._is_rounded(name, value):
                kind = ROUNDED
            elif self._all_end_in_0(name):
                kind = ALL_END_IN_0
            if kind:
                found.append(Problem(kind, name, row.header(name), shown(name, value)))
        return tuple(found)

    def _is_rounded(self, name: str, value: str) -> bool:
        query = "SELECT 1 FROM id WHERE field = ? AND value = ? AND rows > 1"
        return may_be_rounded(value) and self._first(query, name, value) is not None

    def _all_end_in_0(self, name: str) -> bool:
        if name in self._exact:
            return False
        query = "SELECT count(*) FROM (SELECT 1 FROM id WHERE field = ? LIMIT ?)"
        return bool(self._first(query, name, FEWEST_ROUNDED)[0] == FEWEST_ROUNDED)

    def warn(self, reading: Reading, say: Callable[[str], None]) -> None:
        """Say what the rows will do that their author may not expect."""
        for warning in self.warnings(reading):
            say(warning)

    def warnings(self, reading: Reading) -> Iterator[str]:
        """What the rows will do that their author may not expect, one line each."""
        kept = "are sent along" if reading.send_unknown else "are left out (--send-unknown sends them)"
        for path, table in reading.tables.items():
            notes = list(table.workbook.notes) if table.workbook else []
            if unknown := table.columns.unknown:
                notes.append(f"columns that no attribute has {kept}: {', '.join(unknown)}")
            yield from (f"{printable(path)}: {note}" for note in notes)
        yield from self._repeated()
        yield from self._shared_tokens()
        for what, cases in self._cases.items():
            yield f"{what}: {', '.join(cases)}{_more(self._counts[what])}"

    def _repeated(self) -> Iterator[str]:
        query = (
            "SELECT resource, account, count(*) FROM row WHERE resource IS NOT NULL AND NOT damaged "
            "GROUP BY resource, account HAVING count(*) > 1 ORDER BY min(number)"
        )
        repeated = self._database.execute(query).fetchmany(NAMED)
        for resource, account, rows in repeated:
            platform, _, resource_id = resource.partition(" ")
            if self._is_rounded(PLATFORMS[platform].id_field, resource_id):
                continue
            named = self._places("resource = ? AND account IS ?", resource, account)
            yield f"{resource} stands in {rows} rows, and the last one wins: {named}{_more(rows)}"
        (total,) = self._first(f"SELECT count(*) FROM ({query})")  # noqa: S608 (constant)
        if total > NAMED:
            yield f"{total - NAMED:,} more pages or channels stand in several rows; the last one wins"

    def _shared_tokens(self) -> Iterator[str]:
        query = (
            "SELECT token, count(DISTINCT resource) FROM row WHERE token IS NOT NULL "
            "GROUP BY token HAVING count(DISTINCT resource) > 1 ORDER BY min(number)"
        )
        for token, pages in self._database.execute(query).fetchmany(NAMED):
            named = self._places("token = ?", token)
            yield f"one {_TOKEN} stands for {pages:,} pages: {named}{_more(pages)}"

    def _places(self, where: str, *given: object) -> str:
        query = f"SELECT shown FROM row WHERE {where} AND NOT damaged ORDER BY number LIMIT ?"  # noqa: S608
        return ", ".join(place for (place,) in self._database.execute(query, (*given, NAMED)))

    # What earlier runs have settled

    def load(self, results: Iterable[RowResult]) -> None:
        """Take the lines of the results file in, in their order: of several for one row, the last one
        counts."""
        for result in results:
            self.note(result)
            key = self._key_of(result)
            if result.status == "registered" and result.row == self._newest(key):
                self._database.execute("DELETE FROM again WHERE resource = ?", (key,))

    def note(self, result: RowResult) -> None:
        """Take one result in."""
        if result.request_id and (parts := parse_request_id(result.request_id)):
            self.job = parts[0]
        resource = _resource(result.platform, result.resource_id)
        execute = self._database.execute
        execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?)", (result.row, result.status, resource))
        key = self._key_of(result)
        if result.status == "registered" and key:
            if result.row < self._newest(key):
                execute(_OLDEST, (key, result.row))
            execute(_NEWEST, (key, result.row))

    def where(self, place: int) -> tuple[int | None, str | None]:
        """The line and the file in which a row of the job stands, as far as the input holds it."""
        found = self._first("SELECT line, file FROM row WHERE place = ?", place)
        return found or (None, None)

    def settled(self, row: Row, statuses: Container[str] = SETTLED) -> bool:
        """Whether the row needs nothing more. Raises UsageError if it was about another resource then."""
        found = self._first("SELECT status, resource FROM result WHERE place = ?", row.place)
        status, resource = found or (None, None)
        if status not in statuses:
            return False
        if not row.problems and not is_same(resource, _resource(row.platform, row.resource_id)):
            raise UsageError(
                f"Row {row.place} is about another resource than the results file says, so the input has "
                "changed: give the whole input, or the file that --failed wrote, or name another "
                "--results file"
            )
        return True

    def goes_out(self, row: Row) -> None:
        """A row goes out in this run."""
        if key := _key(row):
            self._database.execute(_OLDEST, (key, row.place))

    def must_follow(self, row: Row) -> bool:
        """Whether a row has to go out, however it ended: an earlier one of its resource went out after it,
        and would be the last."""
        query = "SELECT 1 FROM again WHERE resource = ? AND place < ?"
        return self._first(query, _key(row), row.place) is not None

    def newest(self, row: Row) -> int:
        """The last row of the job that is registered for the row's resource, 0 if none is."""
        return self._newest(_key(row))

    def _newest(self, key: str | None) -> int:
        found = self._first("SELECT place FROM newest WHERE resource = ?", key)
        return int(found[0]) if found else 0

    def _key_of(self, result: RowResult) -> str | None:
        """The resource of a result; its id and its account as the input has them, where that is known."""
        resource = _resource(result.platform, result.resource_id)
        found = self._first("SELECT resource, account FROM row WHERE place = ?", result.row)
        if found and is_same(resource, found[0]):
            return _of_account(*found)
        return resource

    # The rows that are given back

    def give_back(self, row: Row, errors: Iterable[str]) -> None:
        """Keep a row and why it was not registered."""
        cells = None if row.cells is None else json.dumps(row.cells, ensure_ascii=False)
        body = b"" if row.cells is not None else row.body
        self._database.execute(
            "INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, ?, ?)",
            (row.place, row.file, row.line, cells, body, "; ".join(errors)),
        )

    def given_back(self) -> Iterator[FailedRow]:
        """Each of them, in the order of the job."""
        for place, file, line, cells, body, error in self._database.execute(
            "SELECT * FROM failed ORDER BY place"
        ):
            yield FailedRow(place, file, line, json.loads(cells or "[]"), body, error)


def is_same(saved: str | None, resource: str | None) -> bool:
    """Whether a resource of the results is that of the input. A spreadsheet that saved the results may have
    rounded its id."""
    saved, resource = one_line(saved or ""), one_line(resource or "")
    (platform, _, written), (of, _, exact) = saved.partition(" "), resource.partition(" ")
    return saved == resource or (platform == of and is_rounded(exact, written))


def _is_decoded_wrongly(text: str) -> bool:
    """Whether this is UTF-8 that was read as Windows-1252, such as `CafÃ©`."""
    with contextlib.suppress(UnicodeError):
        return text.encode("cp1252").decode() != text
    return False


def _key(row: Row) -> str | None:
    return _of_account(_resource(row.platform, row.resource_id), row.account_id)


def _of_account(resource: str | None, account: str | None) -> str | None:
    return f"{resource} of account {account}" if resource and account else resource


def _resource(platform: str | None, resource_id: str | None) -> str | None:
    return f"{platform} {resource_id}" if platform and resource_id else None


def _more(count: int) -> str:
    return f" and {count - NAMED:,} more" if count > NAMED else ""
