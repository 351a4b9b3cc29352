"""The results file: a line for each row that has its answer, as it arrives (contract §8)."""

import csv
import fcntl
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from worker.contract.reply import Reply
from worker.errors import UsageError, WorkerError

COLUMNS = ("row", "requestId", "status", "ottPlatformName", "resourceId", "errors")
CSV_SEPARATOR = "; "  # between the messages of one cell
INVALID = "invalid"
_JSON_BEGINS = b'{"row": '

_encode = json.JSONEncoder(ensure_ascii=False).encode


class ResultsFileError(WorkerError):
    """The results file takes no more lines."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one row. `status` is that of the reply, or `invalid` from a check."""

    row: int
    request_id: str | None
    status: str
    platform: str | None = None
    resource_id: str | None = None
    errors: tuple[str, ...] = ()

    @classmethod
    def of(cls, row: int, reply: Reply) -> Self:
        messages = tuple(error.message for error in reply.errors) or (
            (reply.message,) if reply.message else ()
        )
        return cls(row, reply.request_id, reply.status, reply.platform, reply.resource_id, messages)


class Results:
    """Appends lines to a file, JSON lines or CSV by its ending; each one is with the operating system when
    `write` returns. Use as a context manager. What is there already is kept; one job at a time may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_line = _csv_line if _is_csv(path) else _json_line

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("ab", buffering=0)
            if self._path.is_file():
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _cut_torn_line(self._path)
            if _is_csv(self._path) and self._path.stat().st_size == 0:
                self._file.write(_csv_text(COLUMNS))
        except BlockingIOError:
            raise UsageError(f"--results {self._path} is being written by another job") from None
        except OSError as error:
            raise UsageError(f"--results {self._path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, result: Result) -> None:
        """Add a line. Raises ResultsFileError."""
        line = self._write_line(result)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise ResultsFileError(f"{self._path} takes no more: is the disk full?")
        except OSError as error:
            raise ResultsFileError(f"{self._path} cannot be written: {error.strerror}") from None


def read_results(path: Path) -> Iterator[Result]:
    """Every line of a results file, in order; none if there is no file. A last line that was torn off is
    left out. Raises UsageError for a file that is something else."""
    try:
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


def _parse(path: Path, number: int, line: bytes) -> Iterator[Result]:
    try:
        text = line.decode().strip()
        if _is_csv(path):
            cells = next(csv.reader([text]), [])
            if number == 1 and cells != list(COLUMNS):
                raise _something_else(path, number)
            if number > 1 and cells:
                yield _from_cells(*cells)
        elif text:
            yield _from_document(json.loads(text))
    except (ValueError, TypeError, KeyError):
        raise _something_else(path, number) from None


def _something_else(path: Path, number: int) -> UsageError:
    return UsageError(f"--results {path} holds something else in line {number}: name another file")


def _from_cells(row: str, request_id: str, status: str, platform: str, resource: str, errors: str) -> Result:
    messages = tuple(errors.split(CSV_SEPARATOR)) if errors else ()
    return Result(int(row), request_id or None, status, platform or None, resource or None, messages)


def _from_document(line: dict[str, Any]) -> Result:
    row, status = line["row"], line["status"]
    if type(row) is not int or not isinstance(status, str):
        raise TypeError
    resource = line["resourceId"]
    return Result(row, line["requestId"], status, line["ottPlatformName"], resource, tuple(line["errors"]))


def _json_line(result: Result) -> bytes:
    line = {
        "row": result.row,
        "requestId": result.request_id,
        "status": result.status,
        "ottPlatformName": result.platform,
        "resourceId": result.resource_id,
        "errors": result.errors,
    }
    return _encode(line).encode(errors="replace") + b"\n"


def _csv_line(result: Result) -> bytes:
    errors = CSV_SEPARATOR.join(" ".join(error.split()) for error in result.errors)
    resource = one_line(result.resource_id or "")
    return _csv_text((result.row, result.request_id, result.status, result.platform, resource, errors))


def one_line(text: str) -> str:
    """A cell that does not break a line of CSV."""
    return re.sub(r"[\r\n]", " ", text)


def _csv_text(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode(errors="replace")


def _is_torn(path: Path, line: bytes, *, first: bool) -> bool:
    """Whether a line without its end is the beginning of one that belongs here."""
    if not _is_csv(path):
        return line.startswith(_JSON_BEGINS) or _JSON_BEGINS.startswith(line)
    return _csv_text(COLUMNS).startswith(line) if first else line.partition(b",")[0].isdigit()


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
        if not _is_torn(path, file.read(len(_csv_text(COLUMNS))), first=at == 0):
            raise UsageError(f"--results {path} holds something else at its end: name another file")
        file.truncate(at)


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"
