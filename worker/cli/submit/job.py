"""`submit` without `--check`: the rows are sent, and what became of them is shown."""

import asyncio
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import typer
import uvloop
from rich.console import Console

from worker.bulk.earlier import Earlier
from worker.bulk.pace import Pace
from worker.bulk.plan import SubmissionPlan
from worker.bulk.readers import Reading
from worker.bulk.results import read_results
from worker.bulk.submission import Submission
from worker.bulk.survey import Survey
from worker.cli.submit.outputs import Outputs
from worker.cli.submit.progress import SubmitProgress
from worker.cli.submit.summary import console_for_results, show_summary
from worker.settings import Settings


def run_job(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    """Submit all rows, and return the exit code. SIGINT and SIGTERM end it early."""
    return uvloop.run(_run(settings, plan, outputs))


async def _run(settings: Settings, plan: SubmissionPlan, outputs: Outputs) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    reading = plan.reading
    outputs.check_results()
    reading.probe()
    with ExitStack() as stack:
        returned = outputs.open_failed(stack, reading)
        survey = stack.enter_context(Survey())
        if reading.rereadable:
            await asyncio.to_thread(survey.take, reading, stop.is_set)
            _warn(survey, reading, outputs)
        results = outputs.open_results(stack)
        earlier = _earlier(stack, survey, outputs)
        job = Submission(settings, plan, survey, results, earlier, returned)
        pace = Pace(job.tally, _size(reading), wait=plan.wait)
        progress = SubmitProgress(job.tally, job.notices, pace)
        try:
            async with progress.shown(Console(stderr=True, highlight=False, quiet=outputs.quiet)):
                await job.run(stop)
            if results and earlier:
                results.keep_last_lines()
        finally:
            if returned:
                returned.write()
            if not reading.rereadable:
                _warn(survey, reading, outputs)
            if job.tally.read and not outputs.quiet:
                show_summary(console_for_results(), job.tally, len(job.out), pace.elapsed, wait=plan.wait)
    return 0 if job.tally.all_well else 1


def _earlier(stack: ExitStack, survey: Survey, outputs: Outputs) -> Earlier | None:
    if not outputs.resume or outputs.results is None:
        return None
    earlier = stack.enter_context(Earlier())
    if survey.any:
        earlier.match(read_results(outputs.results), survey)
    earlier.load(read_results(outputs.results))
    if earlier.job is None:
        # Its answers would tell which job it was; without any, what it had out is sent once more.
        _say(f"{outputs.results} holds no answer of an earlier run: every row is sent, as a new job", outputs)
    return earlier


def _warn(survey: Survey, reading: Reading, outputs: Outputs) -> None:
    for warning in survey.warnings(reading):
        _say(warning, outputs)


def _say(text: str, outputs: Outputs) -> None:
    if not outputs.quiet:
        typer.echo(f"ott-worker: {text}", err=True)


def _size(reading: Reading) -> int | None:
    """Bytes of all inputs, or None where one is not a file."""
    if not all(Path(path).is_file() for path in reading.paths):
        return None
    return sum(os.path.getsize(path) for path in reading.paths)
