"""Rows that were not registered, given back as they came, each with its error and its line: for mending and
submitting again (contract §8, `--failed`)."""

import codecs
import csv
import io
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from worker.bulk.readers import Reading, Row
from worker.errors import UsageError
from worker.tables.cells import guard
from worker.tables.records import RETURNED, Table

_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode


class Returned:
    """Collects rows in a temporary database, and writes them in the order of the input when the job ends: a
    CSV file with the header of the input, or JSON lines for an input of JSON. Use as a context manager."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path = path
        self._reading = reading

    def __enter__(self) -> Self:
        if not self._path.resolve().parent.is_dir():
            raise UsageError(f"--failed {self._path} cannot be written: its folder does not exist")
        if self._path.exists() and not self._path.is_file():  # it is replaced as a whole
            raise UsageError(f"--failed {self._path} cannot be written: it is no file")
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            CREATE TABLE row (
                number INTEGER PRIMARY KEY, file TEXT, line INTEGER, cells TEXT, body BLOB, error TEXT
            );
            """
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, row: Row, errors: Iterable[str]) -> None:
        """Keep a row and why it was not registered."""
        cells = None if row.cells is None else _ENCODE(row.cells)
        self._database.execute(
            "INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?, ?)",
            (row.number, row.file, row.line, cells, row.body, "; ".join(errors)),
        )

    def check(self) -> None:
        """Raises UsageError if the file's name promises another format than the input has."""
        ending = self._path.suffix.lower()
        if self._reading.tables and ending in (".json", ".jsonl", ".ndjson", ".xlsx"):
            raise UsageError("--failed gives rows of a table back as CSV: name a .csv file")
        if (
            self._reading.rereadable
            and not self._reading.tables
            and ending in (".csv", ".tsv", ".xlsx", ".json")
        ):
            raise UsageError("--failed gives rows of JSON back as JSON lines: name a .jsonl file")

    def write(self) -> None:
        """Write the file as a whole; it holds secrets, so that only its owner may read it. Raises
        UsageError."""
        try:
            folder = self._path.resolve().parent
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{self._path.name}.", delete=False) as file:
                try:
                    file.writelines(self._lines())
                    file.flush()
                    os.replace(file.name, self._path.resolve())
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise UsageError(f"--failed {self._path} cannot be written: {error.strerror}") from None

    def _lines(self) -> Iterator[bytes]:
        tables = self._reading.tables
        if tables:
            yield from _csv_lines(tables, self._rows())
            return
        for _, line, _, body, error in self._rows():
            yield _json_line(body, error, line)

    def _rows(self) -> Iterator[tuple[str, int, str | None, bytes, str]]:
        yield from self._database.execute("SELECT file, line, cells, body, error FROM row ORDER BY number")


def _csv_lines(
    tables: dict[str, Table], rows: Iterable[tuple[str, int, str | None, bytes, str]]
) -> Iterator[bytes]:
    """`error` and `line` stand in front: a row with a cell too many or too few keeps them in their places."""
    header = list(
        dict.fromkeys(name for table in tables.values() for name in _own(table, table.columns.header))
    )
    delimiter = next(iter(tables.values())).delimiter
    yield codecs.BOM_UTF8 + _csv_line([*RETURNED, *header], delimiter)
    for file, line, kept, _, error in rows:
        table, cells = tables[file], json.loads(kept or "[]")
        names, cells = _own(table, table.columns.header), _own(table, cells)
        if names != header:
            given = dict(zip(names, cells, strict=False))
            cells = [given.get(name, "") for name in header]
        yield _csv_line([guard(error), str(line), *cells], delimiter)


def _own(table: Table, cells: Sequence[str]) -> list[str]:
    """The cells without those of the columns that an earlier job has added."""
    added = {at for at, name in enumerate(table.columns.names) if name in RETURNED}
    return [cell for at, cell in enumerate(cells) if at not in added]


def _csv_line(cells: list[str], delimiter: str) -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode(errors="replace")


def _json_line(body: bytes, error: str, line: int) -> bytes:
    """The row with `error` and `line` in front; what is no JSON object stays as it is."""
    if not body.startswith(b"{"):
        return b" ".join(body.split(b"\n")) + b"\n"
    added = _ENCODE({"error": error, "line": line}).encode(errors="replace")
    rest = b" ".join(body[1:].split(b"\n")).lstrip()
    return added[:-1] + (b"" if rest.startswith(b"}") else b", ") + rest + b"\n"
