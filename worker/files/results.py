"""What a job writes (contract §8): the results file, a line for each row that has its answer, as it arrives;
and the file of the rows that were not registered, as they came, to be corrected and submitted again."""

import codecs
import csv
import fcntl
import io
import json
import os
import re
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from worker.contract.reply import Reply
from worker.errors import UsageError, WorkerError
from worker.files import csv_file
from worker.files.cells import clean, guard, printable, unguard
from worker.files.damage import Problem
from worker.files.rows import Reading, Row
from worker.files.source import Source, Unreadable, decode_sample, encoding_of
from worker.files.table import RETURNED, Table
from worker.files.workbook import is_ours, write

CSV_SEPARATOR = "; "  # between the messages of one cell
INVALID = "invalid"
SETTLED = ("registered", "superseded")
_JSON_BEGINS = b'{"row": '
_ROW = re.compile(rb'(?:\{"row": )?(\d+),')

_encode = json.JSONEncoder(ensure_ascii=False).encode


class ResultsFileError(WorkerError):
    """The results file takes no more lines."""


def _column(name: str, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"column": name})


class FailedRow(NamedTuple):
    """A row that was not registered, and why. `place` is its number in the job; of a table's row there are
    the `cells`, of a row of JSON the `body`."""

    place: int
    file: str
    line: int
    cells: list[str]
    body: bytes
    error: str


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row: a line of the file, whose columns are these fields in this order. `status` is
    that of the reply, or `invalid` for a row that was not sent. `file` and `line` tell where it stands, if
    that is known."""

    row: int
    request_id: str | None = _column("requestId")
    status: str = _column("status")
    platform: str | None = _column("ottPlatformName", None)
    resource_id: str | None = _column("resourceId", None)
    errors: tuple[str, ...] = ()
    line: int | None = None
    file: str | None = None

    @classmethod
    def of(cls, row: int, reply: Reply, line: int | None = None, file: str | None = None) -> Self:
        """The answer to a row."""
        messages = tuple(error.message for error in reply.errors) or (
            (reply.message,) if reply.message else ()
        )
        about = (reply.request_id, reply.status, reply.platform, reply.resource_id)
        return cls(row, *about, messages, line, file)

    @classmethod
    def unsent(cls, row: Row, request_id: str | None, status: str, errors: Iterable[str]) -> Self:
        """Why a row was not sent."""
        about = (row.platform, row.shown_id, tuple(errors), row.line, row.file)
        return cls(row.place, request_id, status, *about)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A line's values by column. Raises KeyError, TypeError or ValueError for what is no line of ours."""
        result = cls(
            **{_FIELDS[name]: values[name] for name in _FIELDS if name in REQUIRED or name in values}
        )
        if type(result.row) is not int or not isinstance(result.status, str):
            raise TypeError
        return replace(result, errors=tuple(result.errors))

    def values(self) -> dict[str, Any]:
        """The line's values by column."""
        return {column: getattr(self, name) for column, name in _FIELDS.items()}


_FIELDS = {each.metadata.get("column", each.name): each.name for each in fields(RowResult)}
COLUMNS = tuple(_FIELDS)
REQUIRED = frozenset(COLUMNS[: COLUMNS.index("errors") + 1])  # releases added the others
_NUMBERS = frozenset(each.name for each in fields(RowResult) if each.type in (int, int | None))


class Results:
    """Appends lines to a file, JSON lines or CSV by its ending; each one is with the operating system when
    `write` returns. Use as a context manager. What is there already is kept; one job at a time may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_line = _csv_line if _is_csv(path) else _json_line
        if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
            raise UsageError("--results writes JSON lines or CSV: name a .jsonl or a .csv file")

    def __enter__(self) -> Self:
        try:
            if self._path.is_file() and _is_resaved(self._path):
                _replace(self._path, map(_csv_line, read_results(self._path)), _HEADER)
            self._file = self._path.open("ab", buffering=0)
            if self._path.is_file():
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _cut_torn_line(self._path)
            if _is_csv(self._path) and self._path.stat().st_size == 0:
                self._file.write(_HEADER)
        except BlockingIOError:
            raise UsageError(f"--results {self._path} is being written by another job") from None
        except OSError as error:
            raise UsageError(f"--results {self._path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, result: RowResult) -> None:
        """Add a line. Raises ResultsFileError."""
        line = self._write_line(result)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise ResultsFileError(f"{self._path} takes no more: is the disk full?")
        except OSError as error:
            raise ResultsFileError(f"{self._path} cannot be written: {error.strerror}") from None

    def keep_last_lines(self) -> None:
        """Leave one line for each row, the last one, in the order in which they were written. The file is
        replaced as a whole. Raises ResultsFileError."""
        if not self._path.is_file():
            return
        try:
            with self._path.open("rb") as file:
                last = array("q")
                for at, line in enumerate(file):
                    if (row := _row_of(line)) >= 0:
                        last.extend([-1] * (row + 1 - len(last)))
                        last[row] = at
                file.seek(0)
                _replace(
                    self._path,
                    (line for at, line in enumerate(file) if (row := _row_of(line)) < 0 or last[row] == at),
                )
        except OSError as error:
            raise ResultsFileError(f"{self._path} cannot be written: {error.strerror}") from None


def read_results(path: Path) -> Iterator[RowResult]:
    """Every line of a results file, in order; none if there is no file. A CSV file may have been saved by a
    spreadsheet since. A last line that was torn off is left out. Raises UsageError for a file that is
    something else."""
    try:
        if _is_resaved(path):
            yield from _resaved(path)
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield from _parse(path, number, line)
                elif not _is_torn(path, line, first=number == 1):
                    raise _something_else(path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"--results {path} cannot be read: {error.strerror}") from None


def _parse(path: Path, number: int, line: bytes) -> Iterator[RowResult]:
    try:
        text = line.decode("utf-8-sig").strip()
        if _is_csv(path):
            cells = next(csv.reader([text]), [])
            if number > 1 and cells:
                yield _from_cells(dict(zip(COLUMNS, cells, strict=True)))
        elif text:
            yield RowResult.parse(json.loads(text))
    except (ValueError, TypeError, KeyError):
        raise _something_else(path, number) from None


def _is_resaved(path: Path) -> bool:
    """Whether a CSV file begins otherwise than ours: a spreadsheet has saved it, or it is something else."""
    if not _is_csv(path):
        return False
    with path.open("rb") as file:
        beginning = file.read(len(_HEADER))
    return not _HEADER.startswith(beginning)


def _resaved(path: Path) -> Iterator[RowResult]:
    with Source(str(path)) as source:
        sample = source.sample()
        encoding = encoding_of(sample)
        rows = csv_file.rows_of(
            source.chunks(), encoding, csv_file.dialect_of(decode_sample(sample, encoding))
        )
        names: list[str] = []
        torn = None  # a line that cannot be read may only be the last one
        try:
            for _, number, cells in rows:
                if torn is not None:
                    raise _something_else(path, torn)
                if isinstance(cells, Problem):
                    torn = number
                elif not names:
                    names = [clean(cell) for cell in cells]
                    if not set(names) >= REQUIRED:
                        raise _something_else(path, number)
                elif any(map(clean, cells)):
                    try:
                        yield _from_cells(dict(zip(names, cells, strict=False)))
                    except (ValueError, TypeError, KeyError):
                        torn = number
        except Unreadable:
            raise _something_else(path, number if names else 1) from None


def _something_else(path: Path, number: int) -> UsageError:
    return UsageError(f"--results {path} holds something else in line {number}: name another file")


def _from_cells(cells: Mapping[str, str]) -> RowResult:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        if name in _NUMBERS:
            text = clean(cells.get(name, ""))
            values[name] = int(text) if text else None
        elif name == "errors":
            values[name] = tuple(filter(None, unguard(cells[name]).split(CSV_SEPARATOR)))
        else:
            values[name] = unguard(cells[name] if name in REQUIRED else cells.get(name, "")) or None
    return RowResult.parse(values)


def _json_line(result: RowResult) -> bytes:
    return _encode(result.values()).encode(errors="replace") + b"\n"


def _csv_line(result: RowResult) -> bytes:
    values = result.values()
    values["errors"] = CSV_SEPARATOR.join(" ".join(error.split()) for error in result.errors)
    return _csv_text([v if name in _NUMBERS else guard(one_line(v or "")) for name, v in values.items()])


def one_line(text: str) -> str:
    """A cell that does not break a line of CSV."""
    return re.sub(r"[\r\n]", " ", text)


def _csv_text(cells: Iterable[object], delimiter: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerow(cells)
    return text.getvalue().encode(errors="replace")


_HEADER = codecs.BOM_UTF8 + _csv_text(COLUMNS)


def _is_torn(path: Path, line: bytes, *, first: bool) -> bool:
    """Whether a line without its end is the beginning of one that belongs here."""
    if not _is_csv(path):
        return line.startswith(_JSON_BEGINS) or _JSON_BEGINS.startswith(line)
    return _HEADER.startswith(line) if first else line.partition(b",")[0].isdigit()


def _cut_torn_line(path: Path) -> None:
    """Remove what an earlier run did not write to its end. Raises UsageError where that is none of ours."""
    with path.open("rb+") as file:
        size = file.seek(0, io.SEEK_END)
        at = size
        while at > 0:
            start = max(0, at - 4096)
            file.seek(start)
            newline = file.read(at - start).rfind(b"\n")
            if newline >= 0:
                at = start + newline + 1
                break
            at = start
        if at == size:
            return
        file.seek(at)
        if not _is_torn(path, file.read(len(_HEADER)), first=at == 0):
            raise UsageError(f"--results {path} holds something else at its end: name another file")
        file.truncate(at)


def _row_of(line: bytes) -> int:
    """The row that a line is about, -1 for a header."""
    found = _ROW.match(line)
    return int(found[1]) if found else -1


def _replace(path: Path, lines: Iterable[bytes], header: bytes = b"") -> None:
    with replacing(path) as file:
        file.write(header)
        file.writelines(lines)
        shutil.copymode(path.resolve(), file.name)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file anew, readable by its owner alone: a reader finds the old one or the new one, whole."""
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


class FailedRows:
    """Writes one file when the job ends: CSV with the header of the input or a workbook, or JSON lines for an
    input of JSON. Raises UsageError for a path that cannot be written, or that holds something else."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading
        ending = path.suffix.lower()
        self._is_workbook = ending == ".xlsx"
        if not path.resolve().parent.is_dir():
            raise self._refused("its folder does not exist")
        if path.exists() and not path.is_file():  # it is replaced as a whole
            raise self._refused("it is no file")
        if reading.tables and ending in (".json", ".jsonl", ".ndjson"):
            raise UsageError("--failed gives rows of a table back as CSV or .xlsx: name such a file")
        if reading.rereadable and not reading.tables and ending in (".csv", ".tsv", ".xlsx", ".json"):
            raise UsageError("--failed gives rows of JSON back as JSON lines: name a .jsonl file")
        if path.is_file() and not _is_ours(path):
            raise self._refused("it holds something that --failed did not write; name another file")

    def _refused(self, why: str | None) -> UsageError:
        return UsageError(f"--failed {self._path} cannot be written: {why}")

    def write(self, rows: Iterable[FailedRow]) -> None:
        """Write the file as a whole; it holds secrets, so that only its owner may read it. Raises
        UsageError."""
        try:
            with replacing(self._path) as file:
                self._write_to(file, rows)
        except OSError as error:
            raise self._refused(error.strerror) from None

    def _write_to(self, file: IO[bytes], rows: Iterable[FailedRow]) -> None:
        tables = self._reading.tables
        if self._is_workbook:
            write(file, self._table_rows(rows))
        elif tables:
            delimiter = next(iter(tables.values())).delimiter
            file.write(codecs.BOM_UTF8)
            file.writelines(_csv_text(cells, delimiter, "\r\n") for cells in self._table_rows(rows, guard))
        else:
            file.writelines(_json_row(row) for row in rows)

    def _table_rows(
        self, rows: Iterable[FailedRow], guarded: Callable[[str], str] = str
    ) -> Iterator[Sequence[str]]:
        """`error`, `line` and `row` stand in front: a row with a cell too many or too few keeps them in their
        places."""
        tables = {printable(path): table for path, table in self._reading.tables.items()}
        header = list(
            dict.fromkeys(name for table in tables.values() for name in _own(table, table.columns.header))
        )
        yield [*RETURNED, *header]
        for row in rows:
            table = tables[row.file]
            names, own = _own(table, table.columns.header), _own(table, row.cells)
            given = dict(zip(names, own, strict=False))
            cells = own if names == header else [given.get(name, "") for name in header]
            yield [guarded(row.error), str(row.line), str(row.place), *cells]


def _own(table: Table, cells: Sequence[str]) -> list[str]:
    """The cells without those of the columns that an earlier job has added."""
    added = {at for at, name in enumerate(table.columns.names) if name in RETURNED}
    return [cell for at, cell in enumerate(cells) if at not in added]


def _is_ours(path: Path) -> bool:
    """Whether a file is empty, or was written for `--failed`."""
    with path.open("rb") as file:
        beginning = file.read(4096)
        if beginning.startswith(b"PK"):
            return is_ours(file)
    text = beginning.removeprefix(codecs.BOM_UTF8).replace(b'"', b"")
    marks = [delimiter.join((b"error", b"line")) for delimiter in (b",", b";", b"\t", b"|")]
    return not text or text.startswith((*marks, b"{error: "))


def _json_row(row: FailedRow) -> bytes:
    """The row with `error`, `line` and `row` in front; what is no JSON object stays as it is."""
    body = b" ".join(row.body.split(b"\n"))
    if not body.startswith(b"{"):
        return body + b"\n"
    added = _encode({"error": row.error, "line": row.line, "row": row.place}).encode(errors="replace")
    rest = body[1:].lstrip()
    return added[:-1] + (b"" if rest.startswith(b"}") else b", ") + rest + b"\n"
