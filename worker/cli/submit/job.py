"""`submit` at work: the rows are checked, or sent, and what became of them is shown and written."""

import asyncio
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console

from worker.cli.submit.report import (
    SubmitProgress,
    console_for_results,
    print_line,
    rows,
    show_findings,
    show_summary,
)
from worker.cli.terminal import Say, on_end
from worker.files.check import Findings, findings
from worker.files.job_database import JobDatabase
from worker.files.results import INVALID, FailedRows, Results, RowResult, read_results
from worker.files.rows import Reading
from worker.files.submission import Submission, SubmissionPlan
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results and failed rows go; `resume` goes on with what the results file holds."""

    results: Path | None
    failed: Path | None
    resume: bool
    quiet: bool

    def open(self, reading: Reading, stack: ExitStack) -> tuple[Results | None, FailedRows | None]:
        """Both, as long as the stack lasts. Raises UsageError for an input that is of no use, and for a file
        that may not be replaced."""
        reading.probe()
        failed = FailedRows(self.failed, reading) if self.failed else None
        results = Results(self.results, resume=self.resume) if self.results else None
        return stack.enter_context(results) if results else None, failed


def check_rows(reading: Reading, outputs: Outputs, max_body_bytes: int, *, send_damaged: bool) -> int:
    """Validate every row, show what is wrong, and return the exit code. Nothing is sent."""
    found = Findings()
    with ExitStack() as stack:
        results, failed = outputs.open(reading, stack)
        database = stack.enter_context(JobDatabase())
        if reading.rereadable:
            database.take(reading, stopped=lambda: False)
        for row in reading.rows():
            if not reading.rereadable:
                database.add(row)
            damaged = () if send_damaged and row.body else database.problems(row)
            errors = found.add(row, findings(row, damaged, max_body_bytes))
            if errors and results:
                results.write(RowResult.unsent(row, None, INVALID, errors))
            if errors and failed:
                database.give_back(row, errors)
        if failed:
            failed.write(database.given_back())
        if not outputs.quiet:
            console = console_for_results()
            show_findings(console, found)
            for warning in database.warnings(reading):
                print_line(console, f"Warning: {warning}")
            counts = f"{found.rows - found.invalid:,} valid, {found.invalid:,} invalid"
            print_line(console, f"{rows(found.rows)}: {counts}.")
    return 1 if found.invalid else 0


def run_job(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    """Submit all rows, and return the exit code. SIGINT, SIGTERM and SIGHUP end it early."""
    return uvloop.run(_run(settings, plan, outputs))


async def _run(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    stop = asyncio.Event()
    on_end(stop.set)
    reading, say = plan.reading, Say(is_quiet=outputs.quiet)
    with ExitStack() as stack:
        results, failed = outputs.open(reading, stack)
        database = stack.enter_context(JobDatabase())
        if reading.rereadable:
            await asyncio.to_thread(database.take, reading, stop.is_set)
            database.warn(reading, say)
        if outputs.resume and outputs.results:
            database.load(read_results(outputs.results))
            if database.job is None:
                # Its answers would tell which job it was; without any, what it had out is sent once more.
                say(f"{outputs.results} holds no answer of an earlier run: every row is sent, as a new job")
        job = Submission(
            settings, plan, database, results, resumed=outputs.resume, gives_back=failed is not None
        )
        progress = SubmitProgress(job.tally, job.notices, _size(reading), wait=plan.wait)
        try:
            async with progress.shown(Console(stderr=True, highlight=False, quiet=outputs.quiet)):
                await job.run(stop)
        finally:
            if failed:
                failed.write(database.given_back())
            if not reading.rereadable:
                database.warn(reading, say)
            if job.tally.read and not outputs.quiet:
                console = console_for_results()
                show_summary(console, job.tally, len(job.out), progress.elapsed, wait=plan.wait)
    return 0 if job.tally.all_well else 1


def _size(reading: Reading) -> int | None:
    """Bytes of all inputs, or None where one is not a file."""
    return sum(map(os.path.getsize, reading.paths)) if reading.rereadable else None
