"""The files that a job writes (contract §8): the results file, with a line for each answer as it arrives; and
the rows that were not registered, unchanged, to be corrected and submitted again."""

import codecs
import csv
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, Self

from worker.contract.words import STATUSES
from worker.errors import UsageError, WorkerError
from worker.files.cells import clean, guard, unguard
from worker.files.job_database import INVALID, JobDatabase, RowResult, one_line
from worker.files.rows import RETURNED
from worker.files.source import Source, Unreadable, encoding_of, lines
from worker.files.table import Table, dialect_of, line_of, reader_of
from worker.files.workbook import is_ours, write

# The fields of a RowResult, in their order.
COLUMNS: Final = ("row", "requestId", "status", "ottPlatformName", "resourceId", "errors", "line", "file")
REQUIRED: Final = frozenset(COLUMNS) - {"line", "file"}  # releases added these
CSV_SEPARATOR = "; "  # between the messages of one cell
_HEADER = codecs.BOM_UTF8 + line_of(COLUMNS)

_encode = json.JSONEncoder(ensure_ascii=False).encode


class Results:
    """Appends lines to a file: JSON lines or CSV, by its suffix. A line is written to the file when `write`
    returns. Use as a context manager; only one job at a time may write.

    With the database `resumed`, the file is continued: its lines, and new ones, are added to the database. At
    the start and at a successful end, only the last line of each row is kept. Otherwise the file may contain
    only the results of an earlier `--check`."""

    def __init__(self, path: Path, resumed: JobDatabase | None = None) -> None:
        if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
            raise UsageError("--results writes JSON lines or CSV: name a .jsonl or a .csv file")
        self._path, self._database = path, resumed
        self._is_csv = path.suffix.lower() == ".csv"

    def __enter__(self) -> Self:
        """Raises UsageError if the file has other content, or the results of an earlier run."""
        try:
            with ExitStack() as files:
                self._files = files
                self._open()
                if self._path.is_file():
                    self._take_over()
                if self._is_csv and self._path.stat().st_size == 0:
                    self._file.write(_HEADER)
                self._files = files.pop_all()
        except BlockingIOError:
            raise UsageError(f"--results {self._path} is being written by another job") from None
        except OSError as error:
            raise UsageError(f"--results {self._path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._files:
            try:
                if self._database is not None and kind is None and self._path.is_file():
                    self._keep_last_lines(self._database)
            except OSError as error:
                raise self._refused(error) from None

    def _open(self) -> None:
        self._file = self._files.enter_context(self._path.open("ab", buffering=0))
        if self._path.is_file():
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take_over(self) -> None:
        if self._database is not None:
            for result in read_results(self._path):
                self._database.note(result)
            self._keep_last_lines(self._database)
            self._open()
        elif any(result.status != INVALID for result in read_results(self._path)):
            raise UsageError(
                f"--results {self._path} holds the results of an earlier run: "
                "add --resume to continue it, or name another file"
            )
        else:
            self._file.truncate(0)

    def write(self, result: RowResult) -> None:
        """Add a line. Raises WorkerError."""
        if self._database is not None:
            self._database.note(result)
        line = self._line(result)
        try:
            written = self._file.write(line)
        except OSError as error:
            raise self._refused(error) from None
        if written != len(line):
            self._file.truncate(self._file.tell() - written)  # a line that follows must begin as one
            raise WorkerError(f"{self._path} cannot be written completely: is the disk full?")

    def _refused(self, error: OSError) -> WorkerError:
        return WorkerError(f"{self._path} cannot be written: {error.strerror}")

    def _keep_last_lines(self, database: JobDatabase) -> None:
        with replacing(self._path) as file:
            file.write(_HEADER if self._is_csv else b"")
            file.writelines(map(self._line, database.results()))
            shutil.copymode(self._path.resolve(), file.name)

    def _line(self, result: RowResult) -> bytes:
        if not self._is_csv:
            document = dict(zip(COLUMNS, result, strict=True))
            return _encode(document).encode(errors="replace") + b"\n"
        errors = CSV_SEPARATOR.join(" ".join(error.split()) for error in result.errors)
        return line_of(
            cell if isinstance(cell, int) else guard(one_line(cell or ""))
            for cell in (*result[:5], errors, *result[6:])
        )


def read_results(path: Path) -> Iterator[RowResult]:
    """Every line of a results file, in order; none if there is no file. A spreadsheet may have saved a CSV
    file. An incomplete last line is ignored. Raises UsageError if it is not a results file."""
    if not path.exists():
        return
    with Source(str(path)) as source:
        sample = source.sample()
        encoding = encoding_of(sample)
        is_csv = path.suffix.lower() == ".csv"
        parse = _csv_parser(sample.decode(encoding, "replace")) if is_csv else _parse_json
        number, line = 0, "\n"
        try:
            for line in lines(source.chunks(), encoding, "replace"):
                number += 1
                if result := parse(line):
                    yield result
        except (Unreadable, ValueError, TypeError, KeyError, csv.Error) as error:
            is_endless = isinstance(error, Unreadable)
            if is_endless or number == 1 or line.endswith("\n"):
                where = f"line {number + is_endless}"
                raise UsageError(
                    f"--results {path} is not a results file in {where}: name another file"
                ) from None


def _parse_json(line: str) -> RowResult | None:
    return _parse(json.loads(line)) if line.strip() else None


def _csv_parser(sample: str) -> Callable[[str], RowResult | None]:
    """A parser of lines. The header defines the columns, in any order."""
    as_written = sample.startswith(_HEADER.decode("utf-8-sig"))
    dialect = {"strict": True} if as_written else dialect_of(sample)
    names: list[str] = []

    def parse(line: str) -> RowResult | None:
        cells: list[str] = next(reader_of([line], **dialect), [])
        if not any(map(clean, cells)):
            return None
        if not names:
            names.extend(map(clean, cells))
            if not REQUIRED.issubset(names):
                raise ValueError("no header")
            return None
        values: dict[str, Any] = {k: unguard(v) or None for k, v in zip(names, cells, strict=False)}
        values |= {name: int(clean(values[name])) for name in ("row", "line") if values.get(name)}
        values["errors"] = list(filter(None, (values["errors"] or "").split(CSV_SEPARATOR)))
        return _parse(values)

    return parse


def _parse(values: Mapping[str, Any]) -> RowResult:
    """The result with these values by column. Raises KeyError, TypeError or ValueError if they are
    invalid."""
    result = RowResult._make(values[name] if name in REQUIRED else values.get(name) for name in COLUMNS)
    if type(result.row) is not int or result.status not in (*STATUSES, INVALID):
        raise TypeError
    return result._replace(errors=tuple(result.errors))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Replace a file atomically, with one that only its owner can read."""
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


class FailedRows:
    """Writes one file when the job ends: CSV with the header of the input or a workbook, or JSON lines for an
    input of JSON. Raises UsageError for a path that cannot be written, or that holds something else."""

    def __init__(self, path: Path, tables: Mapping[str, Table]) -> None:
        self._path, self._tables = path, tables
        try:
            tempfile.TemporaryFile(dir=path.resolve().parent).close()
        except OSError as error:
            raise self._refused(f"its folder: {error.strerror}") from None
        if path.exists() and not path.is_file():  # it is replaced as a whole
            raise self._refused("it is not a regular file")
        if path.is_file() and not _is_ours(path):
            raise self._refused("--failed did not write its content; name another file")

    def _refused(self, why: str | None) -> UsageError:
        return UsageError(f"--failed {self._path} cannot be written: {why}")

    def write(self, database: JobDatabase) -> None:
        """Write the file. It holds secrets, so only its owner can read it. Raises UsageError."""
        try:
            with replacing(self._path) as file:
                if self._path.suffix.lower() == ".xlsx":
                    write(file, self._cells(database))
                elif self._tables:
                    delimiter = next(iter(self._tables.values())).delimiter
                    file.write(codecs.BOM_UTF8)
                    file.writelines(
                        line_of(cells, delimiter, "\r\n") for cells in self._cells(database, guard)
                    )
                else:
                    for error, line, place, *_, body in database.failed():
                        file.write(_json_row(body, error, line, place))
        except OSError as error:
            raise self._refused(error.strerror) from None

    def _cells(self, database: JobDatabase, guarded: Callable[[str], str] = str) -> Iterator[Sequence[str]]:
        """The rows with the added columns in front: there, a row with too many or too few cells keeps them in
        position."""
        tables = self._tables.values()
        header = list(dict.fromkeys(name for table in tables for name in _own(table, table.header)))
        yield [*RETURNED, *header]
        for error, line, place, file, cells, _ in database.failed():
            table = self._tables[file]
            names, own = _own(table, table.header), _own(table, json.loads(cells or "[]"))
            if names != header:
                given = dict(zip(names, own, strict=False))
                own = [given.get(name, "") for name in header]
            yield [guarded(error), str(line), str(place), *own]


def _own(table: Table, cells: Sequence[str]) -> list[str]:
    """The cells, without the columns that an earlier job added."""
    added = {at for at, name in enumerate(table.names) if name in RETURNED}
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


def _json_row(body: bytes, error: str, line: int, place: int) -> bytes:
    """The row with the added fields in front. A row that is not a JSON object is unchanged."""
    body = b" ".join(body.split(b"\n"))
    if not body.startswith(b"{"):
        return body + b"\n"
    added = _encode(dict(zip(RETURNED, (error, line, place), strict=True))).encode(errors="replace")
    rest = body[1:].lstrip()
    return added[:-1] + (b"" if rest.startswith(b"}") else b", ") + rest + b"\n"
