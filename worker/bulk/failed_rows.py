"""The rows that were not registered, given back as they came, each with its error, its line and its number
in the job: to be corrected and submitted again (contract §8, `--failed`)."""

import codecs
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from worker.bulk.job_database import JobDatabase
from worker.bulk.readers import Reading
from worker.errors import UsageError
from worker.tables.cells import guard, printable
from worker.tables.records import RETURNED, Table
from worker.tables.workbook_writer import is_ours, write

_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode
_JSON: Final = (".jsonl", ".ndjson")


class FailedRows:
    """Writes one file when the job ends: CSV with the header of the input or a workbook, or JSON lines for an
    input of JSON. Raises UsageError for a path that cannot be written, or that holds something else."""

    def __init__(self, path: Path, reading: Reading, database: JobDatabase) -> None:
        self._path, self._reading, self._database = path, reading, database
        ending = path.suffix.lower()
        self._is_workbook = ending == ".xlsx"
        if not path.resolve().parent.is_dir():
            raise self._refused("its folder does not exist")
        if path.exists() and not path.is_file():  # it is replaced as a whole
            raise self._refused("it is no file")
        if reading.tables and ending in (".json", *_JSON):
            raise UsageError("--failed gives rows of a table back as CSV or .xlsx: name such a file")
        if reading.rereadable and not reading.tables and ending in (".csv", ".tsv", ".xlsx", ".json"):
            raise UsageError("--failed gives rows of JSON back as JSON lines: name a .jsonl file")
        if path.is_file() and not _is_ours(path):
            raise self._refused("it holds something that --failed did not write; name another file")

    def _refused(self, why: str | None) -> UsageError:
        return UsageError(f"--failed {self._path} cannot be written: {why}")

    def write(self) -> None:
        """Write the file as a whole; it holds secrets, so that only its owner may read it. Raises
        UsageError."""
        try:
            folder = self._path.resolve().parent
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{self._path.name}.", delete=False) as file:
                try:
                    self._write_to(file)
                    file.flush()
                    os.replace(file.name, self._path.resolve())
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise self._refused(error.strerror) from None

    def _write_to(self, file: "BinaryIO | tempfile._TemporaryFileWrapper[bytes]") -> None:
        tables = self._reading.tables
        if self._is_workbook:
            write(file, self._table_rows())  # type: ignore[arg-type]
        elif tables:
            delimiter = next(iter(tables.values())).delimiter
            file.write(codecs.BOM_UTF8)
            file.writelines(_csv_line(cells, delimiter) for cells in self._table_rows(guard))
        else:
            for place, _, line, _, body, error in self._database.given_back():
                file.write(_json_line(body, error, line, place))

    def _table_rows(self, guarded: Callable[[str], str] = str) -> Iterator[Sequence[str]]:
        """`error`, `line` and `row` stand in front: a row with a cell too many or too few keeps them in their
        places."""
        tables = {printable(path): table for path, table in self._reading.tables.items()}
        header = list(
            dict.fromkeys(name for table in tables.values() for name in _own(table, table.columns.header))
        )
        yield [*RETURNED, *header]
        for place, file, line, kept, _, error in self._database.given_back():
            table = tables[file]
            names, own = _own(table, table.columns.header), _own(table, kept)
            given = dict(zip(names, own, strict=False))
            cells = own if names == header else [given.get(name, "") for name in header]
            yield [guarded(error), str(line), str(place), *cells]


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


def _csv_line(cells: Sequence[str], delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode(errors="replace")


def _json_line(body: bytes, error: str, line: int, place: int) -> bytes:
    """The row with `error`, `line` and `row` in front; what is no JSON object stays as it is."""
    if not body.startswith(b"{"):
        return b" ".join(body.split(b"\n")) + b"\n"
    added = _ENCODE({"error": error, "line": line, "row": place}).encode(errors="replace")
    rest = b" ".join(body[1:].split(b"\n")).lstrip()
    return added[:-1] + (b"" if rest.startswith(b"}") else b", ") + rest + b"\n"
