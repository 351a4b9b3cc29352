"""What a job writes (contract §8): the results file, a line for each row that has its answer, as it arrives;
and the file of the rows that were not registered, as they came, to be corrected and submitted again."""

import codecs
import csv
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from worker.contract.reply import Reply
from worker.errors import UsageError, WorkerError
from worker.files.cells import clean, guard, printable, unguard
from worker.files.csv_file import dialect_of, line_of, reader_of
from worker.files.rows import Reading, Row
from worker.files.source import Source, Unreadable, decode_sample, encoding_of, lines
from worker.files.table import RETURNED, Table
from worker.files.workbook import is_ours, write

CSV_SEPARATOR = "; "  # between the messages of one cell
INVALID = "invalid"
SETTLED = ("registered", "superseded")
_JSON_BEGINS = '{"row": '

_encode = json.JSONEncoder(ensure_ascii=False).encode


class ResultsFileError(WorkerError):
    """The results file takes no more lines."""


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
    """What became of one row: a line of the file, whose columns are these fields. `status` is that of the
    reply, or `invalid` for a row that was not sent. `file` and `line` tell where it stands, if that is
    known."""

    row: int
    request_id: str | None
    status: str
    platform: str | None = None
    resource_id: str | None = None
    errors: tuple[str, ...] = ()
    line: int | None = None
    file: str | None = None

    @classmethod
    def of(cls, row: int, reply: Reply, line: int | None = None, file: str | None = None) -> Self:
        """The answer to a row."""
        about = (reply.request_id, reply.status, reply.platform, reply.resource_id)
        return cls(row, *about, reply.messages, line, file)

    @classmethod
    def unsent(cls, row: Row, request_id: str | None, status: str, errors: Iterable[str]) -> Self:
        """Why a row was not sent."""
        about = (row.platform, row.shown_id, tuple(errors), row.line, row.file)
        return cls(row.place, request_id, status, *about)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A line's values by column. Raises KeyError, TypeError or ValueError for what is no line of ours."""
        given = {_FIELDS[name]: values[name] for name in _FIELDS if name in REQUIRED or name in values}
        result = cls(**given)
        if type(result.row) is not int or not isinstance(result.status, str):
            raise TypeError
        return replace(result, errors=tuple(result.errors))

    def values(self) -> dict[str, Any]:
        """The line's values by column."""
        return {column: getattr(self, name) for column, name in _FIELDS.items()}


_FIELDS = {
    "row": "row",
    "requestId": "request_id",
    "status": "status",
    "ottPlatformName": "platform",
    "resourceId": "resource_id",
    "errors": "errors",
    "line": "line",
    "file": "file",
}
REQUIRED = frozenset(_FIELDS) - {"line", "file"}  # releases added these
_NUMBERS = ("row", "line")


class Results:
    """Appends lines to a file, JSON lines or CSV by its ending; each one is with the operating system when
    `write` returns. Use as a context manager; one job at a time may write. With `resume` the file goes on,
    else it may hold nothing but what an earlier check has found."""

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        self._path, self._resume = path, resume
        self._line = _csv_line if _is_csv(path) else _json_line
        if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
            raise UsageError("--results writes JSON lines or CSV: name a .jsonl or a .csv file")

    def __enter__(self) -> Self:
        """Raises UsageError for a file that holds something else, or answers that cannot be had again."""
        try:
            with ExitStack() as files:
                self._open(files)
                if self._path.is_file():
                    self._take_over(files)
                if _is_csv(self._path) and self._path.stat().st_size == 0:
                    self._file.write(_HEADER)
                self._files = files.pop_all()
        except BlockingIOError:
            raise UsageError(f"--results {self._path} is being written by another job") from None
        except OSError as error:
            raise UsageError(f"--results {self._path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._files:
            if self._resume and kind is None:
                try:
                    self._keep_last_lines()
                except OSError as error:
                    raise self._refused(error) from None

    def _open(self, files: ExitStack) -> None:
        self._file = files.enter_context(self._path.open("ab", buffering=0))
        if self._path.is_file():
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take_over(self, files: ExitStack) -> None:
        if self._resume:
            self._keep_last_lines()
            self._open(files)  # beside the file that was replaced, whose lock keeps others out until the end
        elif any(result.status != INVALID for result in read_results(self._path)):
            raise UsageError(
                f"--results {self._path} holds the results of an earlier run: "
                "add --resume to go on with it, or name another file"
            )
        else:
            self._file.truncate(0)

    def write(self, result: RowResult) -> None:
        """Add a line. Raises ResultsFileError."""
        line = self._line(result)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise ResultsFileError(f"{self._path} takes no more: is the disk full?")
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> ResultsFileError:
        return ResultsFileError(f"{self._path} cannot be written: {error.strerror}")

    def _keep_last_lines(self) -> None:
        """Leave one line for each row, the last one, in the order in which they were written, and as `write`
        writes them. The file is replaced as a whole."""
        if not self._path.is_file():
            return
        last = {result.row: at for at, result in enumerate(read_results(self._path))}
        with replacing(self._path) as file:
            file.write(_HEADER if _is_csv(self._path) else b"")
            for at, result in enumerate(read_results(self._path)):
                if last[result.row] == at:
                    file.write(self._line(result))
            shutil.copymode(self._path.resolve(), file.name)


def read_results(path: Path) -> Iterator[RowResult]:
    """Every line of a results file, in order; none if there is no file. A CSV file may have been saved by a
    spreadsheet since. A last line that was torn off is left out. Raises UsageError for a file that is
    something else."""
    if not path.exists():
        return
    with Source(str(path)) as source:
        sample = source.sample()
        encoding = encoding_of(sample)
        parse = _CsvLines(decode_sample(sample, encoding)) if _is_csv(path) else _JsonLines()
        number, torn = 0, False
        try:
            for number, line in enumerate(lines(source.chunks(), encoding, "replace"), 1):
                if torn:
                    raise _something_else(path, number - 1)
                try:
                    result = parse(line)
                except (ValueError, TypeError, KeyError, csv.Error):
                    torn = parse.is_torn(line)
                    if not torn:
                        raise _something_else(path, number) from None
                else:
                    if result is not None:
                        yield result
        except Unreadable:
            raise _something_else(path, number + 1) from None


class _JsonLines:
    """Parses lines of JSON; None for a blank one."""

    def __call__(self, line: str) -> RowResult | None:
        return RowResult.parse(json.loads(line)) if line.strip() else None

    def is_torn(self, line: str) -> bool:
        """Whether a line that cannot be parsed is the beginning of one that belongs here."""
        return not line.endswith("\n") and (line.startswith(_JSON_BEGINS) or _JSON_BEGINS.startswith(line))


class _CsvLines:
    """The same of CSV. The header tells the columns, whatever their order."""

    def __init__(self, sample: str) -> None:
        as_written = sample.startswith(_HEADER.decode("utf-8-sig"))
        self._dialect = {"strict": True} if as_written else dialect_of(sample)
        self._names: list[str] = []

    def __call__(self, line: str) -> RowResult | None:
        cells: list[str] = next(reader_of([line], **self._dialect), [])
        if not any(map(clean, cells)):
            return None
        if self._names:
            return _from_cells(dict(zip(self._names, cells, strict=False)))
        names = list(map(clean, cells))
        if not REQUIRED.issubset(names):
            raise ValueError("no header")
        self._names = names
        return None

    def is_torn(self, line: str) -> bool:
        return bool(self._names) or _HEADER.decode("utf-8-sig").startswith(line)


def _something_else(path: Path, number: int) -> UsageError:
    return UsageError(f"--results {path} holds something else in line {number}: name another file")


def _from_cells(cells: Mapping[str, str]) -> RowResult:
    values: dict[str, Any] = {name: unguard(cells[name]) or None for name in _FIELDS if name in cells}
    values |= {name: int(clean(cells[name])) for name in _NUMBERS if clean(cells.get(name, ""))}
    values["errors"] = list(filter(None, (values["errors"] or "").split(CSV_SEPARATOR)))
    return RowResult.parse(values)


def _json_line(result: RowResult) -> bytes:
    return _encode(result.values()).encode(errors="replace") + b"\n"


def _csv_line(result: RowResult) -> bytes:
    values = result.values()
    values["errors"] = CSV_SEPARATOR.join(" ".join(error.split()) for error in result.errors)
    return line_of([v if name in _NUMBERS else guard(one_line(v or "")) for name, v in values.items()])


def one_line(text: str) -> str:
    """A cell that does not break a line of CSV."""
    return re.sub(r"[\r\n]", " ", text)


_HEADER = codecs.BOM_UTF8 + line_of(_FIELDS)


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
            file.writelines(line_of(cells, delimiter, "\r\n") for cells in self._table_rows(rows, guard))
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
