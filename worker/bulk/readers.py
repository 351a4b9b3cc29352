"""The rows of a job, from its inputs in whatever format they are."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from worker.bulk import csv_rows, json_rows
from worker.bulk.csv_rows import PLATFORM_COLUMN
from worker.bulk.source import STANDARD_INPUT, Source, Unreadable
from worker.contract.registration import MalformedBody, Registration, Rejection, parse_object, validate
from worker.errors import UsageError

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Format(StrEnum):
    """How an input is written."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    JSON = "json"


_BY_ENDING = {
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `number` counts from 1 over the data rows of all inputs; `read` is how many bytes of them
    had been read by then. A row with a `problem` cannot be sent, and has no body."""

    number: int
    read: int
    body: bytes = b""
    parsed: Registration | Rejection | None = None
    problem: str = ""

    @property
    def platform(self) -> str | None:
        return self.parsed.platform if self.parsed else None

    @property
    def resource_id(self) -> str | None:
        return self.parsed.resource_id if self.parsed else None


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read, and how: `platform` is for rows that name none."""

    paths: tuple[str, ...]
    platform: str | None = None
    format: Format | None = None
    encoding: str | None = None

    def rows(self) -> Iterator[Row]:
        """All rows, in order, one held at a time. Raises UsageError for an input that is of no use, and
        Unreadable for one that cannot be read on."""
        numbers = count(1)
        read = 0
        for path in self.paths:
            with Source(path) as source:
                yield from self._rows(source, numbers, read)
                read += source.read

    def probe(self) -> None:
        """Look at the beginning of every file. Raises UsageError for one that is missing or of no use."""
        for path in self.paths:
            # What a pipe has given once it does not give again.
            if path != STANDARD_INPUT and (Path(path).is_file() or not Path(path).exists()):
                with Source(path) as source, contextlib.suppress(Unreadable):
                    next(self._rows(source, count(1), 0), None)

    def _rows(self, source: Source, numbers: Iterator[int], before: int) -> Iterator[Row]:
        number = 0
        try:
            for make_row in self._records(source):
                number = next(numbers)
                yield make_row(number, before + source.read)
        except Unreadable as error:
            where = f"after row {number}" if number else "at its beginning"
            raise Unreadable(f"{source.name} cannot be read on {where}: {error}") from None
        except UsageError as error:
            raise UsageError(f"{source.name}: {error}") from None

    def _records(self, source: Source) -> Iterator[Callable[[int, int], Row]]:
        sample = source.sample()
        chunks = source.chunks()
        chosen = self.format or format_of(source.path, sample)
        if not sample.strip():
            return
        if chosen is Format.CSV:
            for record in csv_rows.records(chunks, sample, self.encoding):
                yield partial(_csv_row, record, self.platform)
            return
        for body in _json_bodies(chosen, chunks, sample):
            yield partial(_json_row, body, self.platform)


def format_of(path: str, sample: bytes) -> Format:
    """By the file's ending, else by how it begins. Raises UsageError where the two contradict each other."""
    by_ending = _BY_ENDING.get(PurePath(path).suffix.lower())
    if by_ending:
        return by_ending
    beginning = sample.removeprefix(b"\xef\xbb\xbf").strip()
    if beginning[:1] == b"[":
        return Format.JSON
    if beginning[:1] == b"{":
        return Format.JSON_LINES if _is_one_line(beginning) else Format.JSON
    if beginning and PurePath(path).suffix.lower() == ".json":
        raise UsageError("it is neither a JSON array nor JSON objects: name its --format, or rename it")
    return Format.CSV


def _is_one_line(beginning: bytes) -> bool:
    return beginning.split(b"\n", 1)[0].rstrip().endswith(b"}")


def _json_bodies(chosen: Format, chunks: Iterable[bytes], sample: bytes) -> Iterator[bytes]:
    chunks = _without_mark(chunks)
    if chosen is Format.JSON_LINES:
        return json_rows.lines(chunks)
    is_array = sample.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return json_rows.array(chunks) if is_array else json_rows.documents(chunks)


def _without_mark(chunks: Iterable[bytes]) -> Iterator[bytes]:
    chunks = iter(chunks)
    first = next(chunks, b"")
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError("it is UTF-16, and JSON is UTF-8: save it as UTF-8")
    yield first.removeprefix(b"\xef\xbb\xbf")
    yield from chunks


def _csv_row(record: csv_rows.Record, platform: str | None, number: int, read: int) -> Row:
    if isinstance(record, str):
        return Row(number, read, problem=record)
    document = _with_platform(record, platform)
    return Row(number, read, _encode(document).encode(), validate(document))


def _json_row(body: bytes, platform: str | None, number: int, read: int) -> Row:
    try:
        document = parse_object(body)
    except MalformedBody as error:
        return Row(number, read, problem=str(error).replace("The body", "The row"))
    if platform and document.get(PLATFORM_COLUMN) in (None, ""):
        document = _with_platform(document, platform)
        body = _encode(document).encode()
    return Row(number, read, body, validate(document))


def _with_platform(document: dict[str, Any], platform: str | None) -> dict[str, Any]:
    if platform and document.get(PLATFORM_COLUMN) in (None, ""):
        return {PLATFORM_COLUMN: platform, **{k: v for k, v in document.items() if k != PLATFORM_COLUMN}}
    return document
