"""The files that `submit` writes, and what they may replace."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from worker.errors import UsageError
from worker.files.results import INVALID, FailedRows, Results, read_results
from worker.files.rows import Reading


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results and failed rows go; `resume` goes on with what the results file holds."""

    results: Path | None
    failed: Path | None
    resume: bool
    quiet: bool

    def check_results(self) -> None:
        """Raises UsageError where the results file is none of ours, or holds what would be lost: the answers
        of an earlier run cannot be had again."""
        if self.results is None or not self.results.is_file():
            return
        if self.resume:
            next(read_results(self.results), None)
            return
        if any(result.status != INVALID for result in read_results(self.results)):
            raise UsageError(
                f"--results {self.results} holds the results of an earlier run: "
                "add --resume to go on with it, or name another file"
            )
        self.results.write_bytes(b"")

    def open_results(self, stack: ExitStack) -> Results | None:
        """The results file, open as long as the stack lasts."""
        return stack.enter_context(Results(self.results)) if self.results else None

    def failed_rows(self, reading: Reading) -> FailedRows | None:
        """The rows that will be given back. Comes after `reading.probe`, which tells their format."""
        return FailedRows(self.failed, reading) if self.failed else None
