"""The rows of a job in a temporary SQLite database on disk: a million rows use no more memory than a
thousand.

It finds damage that only several rows together show (contract §12), what earlier runs of the job have settled
(`--resume`), and keeps the failed rows (`--failed`)."""

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Self

from worker.contract.platforms import ID_FIELDS
from worker.errors import UsageError, WorkerError
from worker.files import damage
from worker.files.damage import Problem, is_long_id, is_rounded, may_be_rounded, shown
from worker.files.rows import Group, Reading, Row, more
from worker.files.source import Unreadable

NAMED: Final = 5  # cases of one kind that a warning names
FEWEST_ROUNDED: Final = 3  # different ids that all end in 0 before that counts as rounding
INVALID: Final = "invalid"
SETTLED: Final = ("registered", "superseded")

_URL = re.compile(r"https?://[^\s/?#:@]+(?::\d+)?(?:[/?#]\S*)?\Z", re.IGNORECASE)
_QUOTES = "\u201c\u201d\u201e\u201f\xab\xbb\u2018\u2019\u201a"
_PAGE: Final = "resource || ifnull(' of account ' || account, '')"
_TOKEN: Final = "pageAccessToken"  # noqa: S105 (a name)

_TABLES = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE row (
        place INTEGER, resource TEXT, account TEXT, file TEXT, line INTEGER, shown TEXT, damaged INTEGER,
        token TEXT, true_at INTEGER, sent TEXT, error TEXT, cells TEXT, body BLOB
    );
    CREATE UNIQUE INDEX row_place ON row (place);
    CREATE INDEX row_resource ON row (resource, account);
    CREATE TABLE result (
        place INTEGER UNIQUE, status TEXT, named TEXT, mark TEXT, whole TEXT
    );
    CREATE INDEX result_mark ON result (mark, place);
    BEGIN;
"""
# The last registered row of a resource, and its position among the results. A row of a file that changed
# later is later.
_NEWEST = """
    SELECT result.place, result.rowid FROM result LEFT JOIN row USING (place)
    WHERE mark = :mark AND status = 'registered' AND ifnull(true_at >= :true_at, 1)
    ORDER BY result.place DESC LIMIT 1
"""
# Whether an earlier row of the resource is sent in this run, or was registered after the last one.
_OVERTAKEN = """
    SELECT 1 FROM row WHERE resource = :resource AND account IS :account AND place < :place
    AND sent IS NOT NULL AND ifnull(true_at <= :true_at, 1)
    UNION ALL
    SELECT 1 FROM result LEFT JOIN row USING (place)
    WHERE mark = :mark AND result.place < :place AND status = 'registered'
    AND result.rowid > :newest_came AND ifnull(true_at <= :true_at, 1) LIMIT 1
"""


class RowResult(NamedTuple):
    """The result of one row: a line of the results file. `status` is that of the reply, or `invalid` if the
    row was not sent. `file` and `line` are its position, if it is known."""

    row: int
    request_id: str | None
    status: str
    platform: str | None = None
    resource_id: str | None = None
    errors: tuple[str, ...] = ()
    line: int | None = None
    file: str | None = None

    @classmethod
    def unsent(cls, row: Row, request_id: str | None, status: str, errors: Iterable[object]) -> Self:
        """The result of a row that was not sent."""
        about = (row.platform, row.shown_id, tuple(map(str, errors)), row.line, row.file)
        return cls(row.place, request_id, status, *about)


class JobDatabase:
    """One job's rows. Use as a context manager. `job` is the id of the job in the results of earlier runs."""

    def __init__(self) -> None:
        self.job: str | None = None
        self._cases: dict[str, Group] = {}  # by warning
        self._rounded: dict[str, set[str]] = {}  # by field, the first different long ids that end in 0
        self._exact: set[str] = set()  # fields with a long id that does not end in 0

    def __enter__(self) -> Self:
        # Rows are added in one thread, and then read in another.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(_TABLES)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._database.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise WorkerError("the folder for temporary files is full: name another one in TMPDIR") from None

    def _first(self, query: str, given: Iterable[object] | Mapping[str, object] = ()) -> Any:
        return self._database.execute(query, given).fetchone()  # type: ignore[arg-type]

    # Checks across rows

    def take(self, reading: Reading, stopped: Callable[[], bool] = lambda: False) -> int | None:
        """Add every readable row, and return their number; None if the reading can be read only once. Raises
        UsageError for an unusable input, or Corrupt."""
        if not reading.rereadable:
            return None
        added = 0
        with contextlib.suppress(Unreadable):
            for row in reading.rows():
                if stopped():
                    break
                self.add(row)
                added += 1
        return added

    def add(self, row: Row) -> None:
        """Add one row. Raises UsageError if another row has its number: their replies would be ambiguous."""
        token = None if row.problems else row.attributes.get(_TOKEN)
        about = (row.place, *_resource(row), row.file, row.line, row.where(), bool(row.problems))
        kept = token if isinstance(token, str) and token else None
        insert = (
            "INSERT INTO row (place, resource, account, file, line, shown, damaged, token, true_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        try:
            self._database.execute(insert, (*about, kept, row.true_at))
        except sqlite3.IntegrityError:
            raise UsageError(
                f"{row.where()} is row {row.place}, and so is another one: submit each file that --failed "
                "wrote separately, and your own rows in another file"
            ) from None
        for name in ID_FIELDS & row.attributes.keys():
            value = row.attributes[name]
            if not is_long_id(value):
                continue
            if not value.endswith("0"):
                self._exact.add(name)
            elif len(ids := self._rounded.setdefault(name, set())) < FEWEST_ROUNDED:
                ids.add(value)
        if not row.problems:
            self._look_at(row)

    def _look_at(self, row: Row) -> None:
        for name, value in row.attributes.items():
            if not isinstance(value, str) or not value:
                continue
            if name == "endpointUrl" and not _URL.match(value):
                self._case("endpointUrl is not a URL (http:// or https://)", row, name)
            if value[0] in _QUOTES or value[-1] in _QUOTES:
                self._case("curly quotes surround a value, and are sent", row, name)
            if not value.isascii() and _is_decoded_wrongly(value):
                self._case("text looks as if it was decoded wrongly", row, name)

    def _case(self, what: str, row: Row, name: str) -> None:
        case = f"{shown(name, row.attributes[name], row.secrets)} in {row.where(name)}"
        self._cases.setdefault(what, Group(NAMED)).add(case)

    def findings(self, row: Row, max_body_bytes: int, *, send_damaged: bool) -> list[Problem]:
        """The damage in a row, unless damaged rows are sent, and its validation errors. For shifted cells
        only the shift is reported."""
        found = [] if send_damaged and row.document is not None else self.problems(row)
        is_shifted = any(problem.kind in damage.SHIFTED for problem in found)
        return found if is_shifted else [*found, *row.refusals(max_body_bytes)]

    def problems(self, row: Row) -> list[Problem]:
        """The damage in a row, by itself and together with the other rows."""
        found = list(row.problems)
        for name in ID_FIELDS & row.attributes.keys() - {problem.field for problem in found}:
            value = row.attributes[name]
            if not is_long_id(value) or not value.endswith("0"):
                continue
            if name in damage.RESOURCE_IDS and may_be_rounded(value) and self._is_repeated(row):
                kind = damage.ROUNDED
            elif name not in self._exact and len(self._rounded.get(name, ())) == FEWEST_ROUNDED:
                kind = damage.ALL_END_IN_0
            else:
                continue
            found.append(Problem(kind, name, row.header(name), shown(name, value)))
        return found

    def _is_repeated(self, row: Row) -> bool:
        query = "SELECT count(*) FROM (SELECT 1 FROM row WHERE resource = ? LIMIT 2)"
        return bool(self._first(query, _resource(row)[:1])[0] > 1)

    def warnings(self, reading: Reading) -> Iterator[str]:
        """What the author of the rows may not expect, one line each."""
        kept = "are sent too" if reading.send_unknown else "are left out (--send-unknown sends them)"
        for name, table in reading.tables.items():
            for note in table.workbook.notes if table.workbook else ():
                yield f"{name}: {note}"
            if table.unknown:
                yield f"{name}: columns without an attribute {kept}: {', '.join(table.unknown)}"
        files = len(reading.paths) > 1 and reading.as_of is None
        last = "last one of the file that was changed last" if files else "last one"
        for page, rows, places in self._shared(_PAGE, "rowid"):
            if not may_be_rounded(page.split()[1]):  # then the ids differ
                yield f"{page} is in {rows:,} rows, and the {last} wins: {places}"
        for _, pages, places in self._shared("token", "resource"):
            yield f"{pages:,} pages have the same {_TOKEN}: {places}"
        for what, cases in self._cases.items():
            yield f"{what}: {cases}"

    def _shared(self, column: str, counted: str) -> Iterator[tuple[str, int, str]]:
        """The first values of a column that several rows share, how many share each, and the positions of the
        first ones. The last value also has the number of further values."""
        query = (
            f"SELECT {column} AS value, count(DISTINCT {counted}) AS times, count(*) OVER () FROM row "  # noqa: S608
            "WHERE value IS NOT NULL AND NOT damaged GROUP BY value HAVING times > 1 "
            "ORDER BY min(rowid) LIMIT ?"
        )
        places = f"SELECT shown FROM row WHERE {column} = ? AND NOT damaged ORDER BY rowid LIMIT ?"  # noqa: S608
        for number, (value, times, values) in enumerate(
            self._database.execute(query, (NAMED,)).fetchall(), 1
        ):
            named = ", ".join(place for (place,) in self._database.execute(places, (value, NAMED)))
            others = f" ({values - NAMED:,} more such)" if number == NAMED < values else ""
            yield value, times, f"{named}{more(times, NAMED)}{others}"

    # Results of earlier runs

    def note(self, result: RowResult) -> None:
        """Add a result; of several results for one row, the last one counts. Its resource and account are the
        input's, if known, else those of the request: a spreadsheet may have rounded the id in the results."""
        self.job, *marks = result.request_id.split("-") if result.request_id else [self.job]
        named = _named(result.platform, result.resource_id)
        known = self._first("SELECT resource, account FROM row WHERE place = ?", [result.row])
        mark = marks[0] if len(marks) == 3 and not known else _digest(*(known or (named, None)))
        saved = (result.row, result.status, named, mark, json.dumps(result))
        self._database.execute("INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?)", saved)

    def results(self) -> Iterator[RowResult]:
        """The last result of each row, in the order in which they were added."""
        for (whole,) in self._database.execute("SELECT whole FROM result ORDER BY rowid"):
            yield RowResult(*json.loads(whole))

    def where(self, place: int) -> tuple[int | None, str | None, str | None]:
        """The line and file of a row, if the input has the row, and the id of its request in this run."""
        return self._first("SELECT line, file, sent FROM row WHERE place = ?", [place]) or (None, None, None)

    def mark_sent(self, row: Row, request_id: str) -> None:
        """Record that a row is sent in this run."""
        self._database.execute("UPDATE row SET sent = ? WHERE place = ?", [request_id, row.place])

    def settled_by(self, row: Row, statuses: Container[str] = SETTLED) -> int | None:
        """The row because of which this one need not be sent: itself, if it is settled, or a later one that
        is registered for the same resource. None if it must be sent; also if an earlier row of its resource
        was sent after it, because this one must be the last. Raises UsageError if it had another resource
        then."""
        resource, account = _resource(row)
        found = self._first("SELECT status, named FROM result WHERE place = ?", [row.place])
        status, named = found or (None, None)
        if status in statuses and not row.problems and not is_same(named, resource):
            raise UsageError(
                f"Row {row.place} has another resource than in the results file, so the input has "
                "changed: use the whole input, or the file that --failed wrote, or name another "
                "--results file"
            )
        values: dict[str, object] = {"resource": resource, "account": account, "place": row.place}
        values |= {"true_at": row.true_at, "mark": _digest(resource, account)}
        newest, values["newest_came"] = self._first(_NEWEST, values) or (0, None)
        if self._first(_OVERTAKEN, values):
            return None
        if status in statuses:
            return row.place
        return newest if newest > row.place else None

    # Failed rows

    def add_failed(self, row: Row, errors: Iterable[object]) -> None:
        """Keep a row and why it was not registered."""
        cells = None if row.cells is None else json.dumps(row.cells, ensure_ascii=False)
        kept = ("; ".join(map(str, errors)), cells, row.body if cells is None else b"", row.place)
        self._database.execute("UPDATE row SET error = ?, cells = ?, body = ? WHERE place = ?", kept)

    def failed(self) -> Iterator[tuple[str, int, int, str, str | None, bytes]]:
        """The failed rows in the order of the job: error, line, place and file, and the cells as JSON (a
        table) or the body (JSON)."""
        return self._database.execute(
            "SELECT error, line, place, file, cells, body FROM row WHERE error IS NOT NULL ORDER BY place"
        )


def is_same(saved: str | None, resource: str | None) -> bool:
    """Whether a resource in the results is that of the input. A spreadsheet may have rounded its id."""
    saved, resource = one_line(saved or ""), one_line(resource or "")
    (platform, _, written), (of, _, exact) = saved.partition(" "), resource.partition(" ")
    return saved == resource or (platform == of and is_rounded(exact, written))


def one_line(text: str) -> str:
    """The text without line breaks."""
    return re.sub(r"[\r\n]", " ", text)


def _is_decoded_wrongly(text: str) -> bool:
    """Whether this is UTF-8 that was read as Windows-1252, such as `CafÃ©`."""
    with contextlib.suppress(UnicodeError):
        return text.encode("cp1252").decode() != text
    return False


def request_id(job: str, row: Row, account_id: str | None) -> str:
    """The id of a row's request: the same whenever the job is resumed, unless the row has changed. It
    contains the resource, for replies whose row is not in the input."""
    version = _digest(row.body, account_id, row.true_at)
    return f"{job}-{_digest(*_resource(row))}-{version}-{row.place}"


def _digest(*values: object) -> str:
    return blake2b(repr(values).encode(), digest_size=8).hexdigest()


def _resource(row: Row) -> tuple[str | None, str | None]:
    """The resource of a row, and its account."""
    return _named(row.platform, row.resource_id), row.account_id


def _named(platform: str | None, resource_id: str | None) -> str | None:
    return f"{platform} {resource_id}" if platform and resource_id else None
