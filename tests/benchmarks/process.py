"""Programs under measurement: started, read from /proc, and ended."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")  # microseconds


class Process:
    """A program. Use as a context manager."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise RuntimeError, with the last of its log, where it has ended."""
        if self._process.poll() is not None:
            end = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._command} ended with {self._process.returncode}:\n{end}")

    def cpu(self) -> float:
        """Microseconds of user and system time so far."""
        fields = _read(f"/proc/{self.pid}/stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) * TICK if fields else 0.0

    def peak_memory(self) -> float:
        """Megabytes of resident memory at the highest."""
        lines = _read(f"/proc/{self.pid}/status").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
