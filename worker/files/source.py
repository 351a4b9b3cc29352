"""The bytes of one input, read once, a chunk at a time, and decompressed if they are gzip (contract §12).
They are split into lines of text, or into the elements of a JSON array."""

import codecs
import io
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Self

from worker.errors import UsageError, WorkerError
from worker.files.cells import printable

STANDARD_INPUT = "-"
CHUNK = 65536  # bytes
SAMPLE = 65536  # bytes, from which the format is detected
LONGEST_ROW = 4 * 1024 * 1024  # characters
LARGEST_WORKBOOK = 256 * 1024 * 1024  # bytes of the file itself

_GZIP = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's value for gzip


class Unreadable(WorkerError):
    """The input cannot be read from some row on."""


class Corrupt(WorkerError):
    """The input is damaged or has changed, so earlier rows may be wrong too."""


class Source:
    """A file, or standard input for `-`: a context manager. Raises UsageError if it cannot be opened, and
    Corrupt if a file has changed since it was first `opened`."""

    def __init__(self, path: str, opened: dict[str, int] | None = None) -> None:
        self.path, self._opened = path, {} if opened is None else opened
        self.name = "standard input" if path == STANDARD_INPUT else printable(path)
        self.changed_at: int | None = None  # microseconds since the epoch; of a file
        self._head = b""
        self._pieces = self._unpacked()

    def __enter__(self) -> Self:
        is_input = self.path == STANDARD_INPUT
        try:
            # Unbuffered: a thread that waits for input would hold the buffer's lock and block the exit.
            self._raw = open(0 if is_input else self.path, "rb", buffering=0, closefd=not is_input)
            state = os.fstat(self._raw.fileno())
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {error.strerror}") from None
        if stat.S_ISREG(state.st_mode):
            self._opened.setdefault(self.path, state.st_mtime_ns)
            self.changed_at = None if is_input else state.st_mtime_ns // 1000
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def sample(self) -> bytes:
        """The beginning: at least the first line that is not blank, if the input has one."""
        while len(self._head) < SAMPLE and b"\n" not in self._head.lstrip():
            if not (piece := next(self._pieces, b"")):
                break
            self._head += piece
        return self._head

    def chunks(self) -> Iterator[bytes]:
        """All of it, the sample included."""
        head, self._head = self._head, b""
        if head:
            yield head
        yield from self._pieces

    def seekable(self) -> BinaryIO:
        """All of it in a seekable temporary file. Raises UsageError if it is larger than the largest
        supported workbook."""
        copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
        for chunk in self.chunks():
            if copy.tell() > LARGEST_WORKBOOK:
                raise UsageError(f"the workbook is larger than {LARGEST_WORKBOOK >> 20} MB: save it as CSV")
            copy.write(chunk)
        copy.seek(0)
        return copy

    def _unpacked(self) -> Iterator[bytes]:
        """The decompressed input, in bounded chunks. A gzip file may have several members."""
        packed = self._read()
        if not packed.startswith(_GZIP):
            while packed:
                yield packed
                packed = self._read()
            return
        member = zlib.decompressobj(_GZIP_WINDOW)
        try:
            while packed or (packed := self._read()):
                if piece := member.decompress(packed, CHUNK):
                    yield piece
                packed = member.unconsumed_tail
                if member.eof:
                    packed = member.unused_data.lstrip(b"\0") or self._read().lstrip(b"\0")
                    if not packed:
                        return
                    member = zlib.decompressobj(_GZIP_WINDOW)
        except zlib.error:
            raise Corrupt("the compressed file is damaged: compress it again") from None
        raise Unreadable("the compressed file ends too early: is it complete?")

    def _read(self) -> bytes:
        try:
            chunk = self._raw.read(CHUNK) or b""
            changed_at = os.fstat(self._raw.fileno()).st_mtime_ns
        except OSError as error:
            raise Unreadable(f"{self.name} cannot be read any further: {error.strerror}") from None
        if self._opened.get(self.path, changed_at) != changed_at:  # the last row may be half of one
            raise Corrupt("it changed while it was read: submit it again when it is complete")
        return chunk


def encoding_of(sample: bytes) -> str:
    """The encoding, from the byte order mark or the zero bytes of UTF-16; else UTF-8."""
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = (sample[0::2].count(0), sample[1::2].count(0))
    if max(zeros) * 5 > len(sample) > 1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def lines(chunks: Iterable[bytes], encoding: str, errors: str = "strict") -> Iterator[str]:
    """Each line, ending in a line feed. Raises Unreadable for text in another encoding and for lines longer
    than LONGEST_ROW."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    pending, number = "", 0
    try:
        for chunk in chunks:
            *complete, pending = (pending + decoder.decode(chunk)).split("\n")
            for line in complete:
                number += 1
                yield line + "\n"
            if len(pending) > LONGEST_ROW:
                raise Unreadable(f"line {number + 1} is longer than {LONGEST_ROW:,} characters")
        pending += decoder.decode(b"", final=True)
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError):
            number += error.object.count(b"\n", 0, error.start)
        raise Unreadable(
            f"line {number + 1} is not {encoding} text: save the file as UTF-8, or name its --encoding"
        ) from None
    if pending:
        yield pending


_BEFORE = re.compile(r"\s*[\[,]\s*")
_AFTER = re.compile(r"\s*[,\]]")
_END = re.compile(r"\s*\[?\s*\]\s*")
# Only the end of a row matters here; errors within it are reported for the row.
_decode = json.JSONDecoder(parse_int=str, parse_float=str, strict=False).raw_decode


def elements(chunks: Iterable[bytes], encoding: str) -> Iterator[tuple[int, str]]:
    """Each element of a JSON array as text, with the line on which it begins. Bytes that are not valid become
    surrogates. Raises Unreadable at an element that is not JSON."""
    buffer, line = "", 1
    try:
        for piece in codecs.iterdecode(chunks, encoding, "surrogateescape"):
            buffer += piece
            at = 0
            while found := _BEFORE.match(buffer, at):
                begins = found.end()
                try:
                    _, ends = _decode(buffer, begins)
                except (ValueError, RecursionError):
                    break  # the rest of it may be in the next chunk
                if not _AFTER.match(buffer, ends):
                    break
                line += buffer.count("\n", at, begins)
                yield line, buffer[begins:ends]
                line += buffer.count("\n", begins, ends)
                at = ends
            buffer = buffer[at:]
            if len(buffer) > LONGEST_ROW:
                raise Unreadable(f"the next row is not JSON, or longer than {LONGEST_ROW:,} characters")
    except UnicodeError:
        raise Unreadable(f"it is not {encoding} text: save the file as UTF-8") from None
    if not _END.fullmatch(buffer):
        raise Unreadable("what follows is not JSON, or is after the array: is the file complete?")
