"""The rows of a job that were not registered, as they came, with `error`, `line` and `row` in front: to be
corrected and submitted again (contract §12)."""

import codecs
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from worker.errors import UsageError
from worker.files.cells import guard
from worker.files.csv_file import line_of
from worker.files.job_database import JobDatabase
from worker.files.results import replacing
from worker.files.rows import RETURNED, Reading
from worker.files.table import Table
from worker.files.workbook import is_ours, write

_encode = json.JSONEncoder(ensure_ascii=False).encode


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

    def write(self, database: JobDatabase) -> None:
        """Write the file as a whole; it holds secrets, so that only its owner may read it. Raises
        UsageError."""
        tables = self._reading.tables
        try:
            with replacing(self._path) as file:
                if self._is_workbook:
                    write(file, self._cells(database))
                elif tables:
                    delimiter = next(iter(tables.values())).delimiter
                    file.write(codecs.BOM_UTF8)
                    file.writelines(
                        line_of(cells, delimiter, "\r\n") for cells in self._cells(database, guard)
                    )
                else:
                    for error, line, place, *_, body in database.given_back():
                        file.write(_json_row(body, error, line, place))
        except OSError as error:
            raise self._refused(error.strerror) from None

    def _cells(self, database: JobDatabase, guarded: Callable[[str], str] = str) -> Iterator[Sequence[str]]:
        """The added columns stand in front: a row with a cell too many or too few keeps them in their
        places."""
        tables = self._reading.tables
        header = list(dict.fromkeys(name for table in tables.values() for name in _own(table, table.header)))
        yield [*RETURNED, *header]
        for error, line, place, file, cells, _ in database.given_back():
            table = tables[file]
            names, own = _own(table, table.header), _own(table, json.loads(cells or "[]"))
            if names != header:
                given = dict(zip(names, own, strict=False))
                own = [given.get(name, "") for name in header]
            yield [guarded(error), str(line), str(place), *own]


def _own(table: Table, cells: Sequence[str]) -> list[str]:
    """The cells without those of the columns that an earlier job has added."""
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
    """The row with what is added in front; what is no JSON object stays as it is."""
    body = b" ".join(body.split(b"\n"))
    if not body.startswith(b"{"):
        return body + b"\n"
    added = _encode(dict(zip(RETURNED, (error, line, place), strict=True))).encode(errors="replace")
    rest = body[1:].lstrip()
    return added[:-1] + (b"" if rest.startswith(b"}") else b", ") + rest + b"\n"
