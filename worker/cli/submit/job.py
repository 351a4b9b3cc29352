"""`submit` without `--check`: the rows are sent, and what became of them is shown."""

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop
from rich.console import Console

from worker.cli.submit.outputs import Outputs
from worker.cli.submit.progress import SubmitProgress, console_for_results, show_summary
from worker.cli.terminal import Say, on_end
from worker.files.job_database import JobDatabase
from worker.files.progress import ProgressMeter
from worker.files.results import read_results
from worker.files.rows import Reading
from worker.files.submission import Submission, SubmissionPlan
from worker.settings import Settings


def run_job(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    """Submit all rows, and return the exit code. SIGINT, SIGTERM and SIGHUP end it early."""
    return uvloop.run(_run(settings, plan, outputs))


async def _run(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    stop = asyncio.Event()
    on_end(stop.set)
    reading, say = plan.reading, Say(is_quiet=outputs.quiet)
    outputs.check_results()
    reading.probe()
    with ExitStack() as stack:
        database = stack.enter_context(JobDatabase())
        failed = outputs.failed_rows(reading)
        if reading.rereadable:
            await asyncio.to_thread(database.take, reading, stop.is_set)
            _warn(database, reading, say)
        results = outputs.open_results(stack)
        if outputs.resume and outputs.results:
            _load(database, outputs.results, say)
        job = Submission(
            settings, plan, database, results, resumed=outputs.resume, gives_back=failed is not None
        )
        meter = ProgressMeter(job.tally, _size(reading), wait=plan.wait)
        progress = SubmitProgress(job.tally, job.notices, meter)
        try:
            async with progress.shown(Console(stderr=True, highlight=False, quiet=outputs.quiet)):
                await job.run(stop)
            if results and outputs.resume:
                results.keep_last_lines()
        finally:
            if failed:
                failed.write(database.given_back())
            if not reading.rereadable:
                _warn(database, reading, say)
            if job.tally.read and not outputs.quiet:
                show_summary(console_for_results(), job.tally, len(job.out), meter.elapsed, wait=plan.wait)
    return 0 if job.tally.all_well else 1


def _load(database: JobDatabase, results: Path, say: Callable[[str], None]) -> None:
    database.load(read_results(results))
    if database.job is None:
        # Its answers would tell which job it was; without any, what it had out is sent once more.
        say(f"{results} holds no answer of an earlier run: every row is sent, as a new job")


def _warn(database: JobDatabase, reading: Reading, say: Callable[[str], None]) -> None:
    for warning in database.warnings(reading):
        say(warning)


def _size(reading: Reading) -> int | None:
    """Bytes of all inputs, or None where one is not a file."""
    if not all(Path(path).is_file() for path in reading.paths):
        return None
    return sum(os.path.getsize(path) for path in reading.paths)
