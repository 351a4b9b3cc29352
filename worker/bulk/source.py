"""The bytes of one input, read once from front to back, a chunk at a time."""

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Self

from worker.errors import UsageError, WorkerError

STANDARD_INPUT = "-"
CHUNK = 65536  # bytes
SAMPLE = 65536  # bytes; what a format is recognised by
LONGEST_ROW = 16 * 1024 * 1024  # bytes; RabbitMQ takes no larger message


class Unreadable(WorkerError):
    """The input cannot be read on from some row."""


class Source:
    """A file, or standard input for `-`: a context manager. Raises UsageError if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "standard input" if path == STANDARD_INPUT else path
        self.read = 0
        self.size: int | None = None
        self._head = b""

    def __enter__(self) -> Self:
        try:
            self._raw = self._open()
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def _open(self) -> BinaryIO:
        # Unbuffered: a buffer's lock, held by a thread that waits for input, would stop the exit.
        if self.path == STANDARD_INPUT:
            return open(0, "rb", buffering=0, closefd=False)
        raw = open(self.path, "rb", buffering=0)  # noqa: SIM115 (the context manager is this class)
        status = os.fstat(raw.fileno())
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        return raw

    def sample(self) -> bytes:
        """The beginning: at least the first line that is not blank, if the input has one."""
        while len(self._head) < SAMPLE and b"\n" not in self._head.lstrip():
            chunk = self._read()
            if not chunk:
                break
            self._head += chunk
        return self._head

    def chunks(self) -> Iterator[bytes]:
        """All of it, the sample included."""
        head, self._head = self._head, b""
        if head:
            yield head
        while chunk := self._read():
            yield chunk

    def _read(self) -> bytes:
        try:
            chunk = self._raw.read(CHUNK) or b""
        except OSError as error:
            raise Unreadable(f"{self.name} cannot be read on: {error.strerror}") from None
        self.read += len(chunk)
        return chunk
