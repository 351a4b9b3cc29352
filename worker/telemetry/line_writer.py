"""Writes lines to a file descriptor on a thread of its own (contract §7): a pipe that nobody reads, or a full
disk, holds up nothing. A line that cannot be written, or finds no room, is dropped and counted."""

import os
import queue
import select
import threading

LINES_KEPT = 1000
END_TIMEOUT = 1.0  # seconds for the lines that are left at the end


class LineWriter:
    """A text file, as far as a logger needs one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | threading.Event] = queue.Queue(LINES_KEPT)
        self._is_torn = False  # a line was written in part
        self.dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Never blocks."""
        try:
            self._lines.put_nowait(text.encode(errors="backslashreplace"))
        except queue.Full:
            self.dropped += 1
        return len(text)

    def flush(self) -> None:
        """Lines are not held back."""

    def close(self) -> None:
        """Wait a moment for the lines that are left."""
        written = threading.Event()
        try:
            self._lines.put(written, timeout=END_TIMEOUT)
        except queue.Full:
            return
        written.wait(END_TIMEOUT)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write_all(b"\n" + line if self._is_torn else line)
            except OSError:
                self.dropped += 1

    def _write_all(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process made the terminal or pipe so
                select.select([], [self._descriptor], [])
            finally:
                if len(rest) < len(line):
                    self._is_torn = bool(rest)
