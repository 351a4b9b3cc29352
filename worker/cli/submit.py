"""`ott-worker submit`."""

import asyncio
import codecs
import os
import signal
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from worker.bulk.check import invalid_rows
from worker.bulk.earlier import Earlier
from worker.bulk.progress import Progress
from worker.bulk.readers import Format, Reading
from worker.bulk.results import INVALID, Results, read_results
from worker.bulk.source import STANDARD_INPUT
from worker.bulk.submission import OUTSTANDING, Plan, Submission
from worker.bulk.summary import console_for_results, rows, show_errors, show_summary
from worker.bulk.tally import Tally
from worker.contract.registration import PLATFORMS
from worker.errors import UsageError
from worker.settings import Settings, load_settings

SHOWN_ROWS = 20  # invalid rows that a check names one by one on a terminal


@dataclass(frozen=True, slots=True)
class _Output:
    results: Path | None
    resume: bool
    quiet: bool


def submit(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Inputs in order; - is standard input.")
    ],
    results: Annotated[
        Path | None, typer.Option(help="Write a line for each row: JSON lines, or CSV by its ending.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out the rows that --results holds as registered.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only validate; needs no broker.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only publish; follow no replies.")] = False,
    platform: Annotated[
        str | None, typer.Option(help=f"For rows that name none: {' or '.join(PLATFORMS)}.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="Business unit (MID) whose token is used for all rows.")
    ] = None,
    input_format: Annotated[
        Format | None, typer.Option("--format", help="By default, told by the ending or the content.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Of CSV files that are not Unicode, such as cp1252.")
    ] = None,
    outstanding: Annotated[
        int, typer.Option(help="Rows published and not answered at one time.", min=1, max=100_000)
    ] = OUTSTANDING,
    timeout: Annotated[
        float | None, typer.Option(help="Give up after so many seconds without a reply.", min=0.1)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> int:
    """Register a file of pages and channels.

    The file is CSV (its first line names the attributes), JSON lines, or a JSON array.

    Rows are counted from 1 over all files. Ctrl-C stops; the same command with --resume goes on.

    After --resume, of several lines that --results holds for one row the last one counts.

    Example: ott-worker submit pages.csv --platform messenger --results results.jsonl
    """
    reading = Reading(tuple(files), _known(platform), input_format, _codec(encoding))
    if no_wait and (results or resume or check):
        raise UsageError("--no-wait follows no replies: leave out --results, --resume and --check")
    if resume and (not results or check):
        raise UsageError("--resume goes on from a results file: name it with --results, without --check")
    if files.count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input (-) can be read only once")
    if results and results.is_file() and any(_is_same_file(path, results) for path in files):
        raise UsageError(f"--results {results} is an input too: name another file")
    output = _Output(results, resume, quiet)
    settings = load_settings()
    if check:
        return _check(reading, settings.max_body_bytes, output)
    plan = Plan(reading, account, outstanding, wait=not no_wait, patience=timeout)
    return uvloop.run(_submit(settings, plan, output))


def _check(reading: Reading, max_body_bytes: int, output: _Output) -> int:
    console, tally = console_for_results(), Tally()
    console.quiet = output.quiet
    _refuse_to_overwrite(output)
    with Results(output.results) if output.results else nullcontext() as file:
        for result in invalid_rows(reading, max_body_bytes):
            if isinstance(result, int):
                tally.read = result
                continue
            tally.read = result.row
            tally.add(result)
            if file:
                file.write(result)
            if not console.is_terminal or tally.answered <= SHOWN_ROWS:
                console.print(f"row {result.row}: {'; '.join(result.errors)}", markup=False, soft_wrap=True)
    invalid = tally.statuses[INVALID]
    if invalid > SHOWN_ROWS and console.is_terminal:
        console.print(f"… and {invalid - SHOWN_ROWS:,} more")
    console.print(f"{rows(tally.read)}: {tally.read - invalid:,} valid, {invalid:,} invalid.")
    show_errors(console, tally.errors())
    return 1 if invalid else 0


async def _submit(settings: Settings, plan: Plan, output: _Output) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        earlier = None
        if output.resume and output.results:
            earlier = stack.enter_context(Earlier())
            earlier.load(read_results(output.results))
        _refuse_to_overwrite(output)
        plan.reading.probe()
        file = stack.enter_context(Results(output.results)) if output.results else None
        if earlier is not None and earlier.job is None and not output.quiet:
            # Its answers would tell which job it was; without any, what it had out is sent once more.
            typer.echo(
                f"ott-worker: {output.results} holds no answer of an earlier run: "
                "every row is sent, as a new job",
                err=True,
            )
        job = Submission(settings, plan, file, earlier)
        progress = Progress(job, _size(plan.reading), wait=plan.wait)
        try:
            async with progress.shown(Console(stderr=True, highlight=False, quiet=output.quiet)):
                await job.run(stop)
        finally:
            if job.tally.read and not output.quiet:
                show_summary(console_for_results(), job.tally, len(job.out), progress.elapsed, wait=plan.wait)
    return 0 if job.tally.all_well else 1


def _refuse_to_overwrite(output: _Output) -> None:
    """The answers of an earlier run cannot be had again."""
    if output.results is None or output.resume or not output.results.is_file():
        return
    if any(result.status != INVALID for result in read_results(output.results)):
        raise UsageError(
            f"--results {output.results} holds the results of an earlier run: "
            "add --resume to go on with it, or name another file"
        )
    output.results.write_bytes(b"")


def _is_same_file(path: str, results: Path) -> bool:
    try:
        return os.path.samefile(0 if path == STANDARD_INPUT else path, results)
    except OSError:
        return False  # one of them is not there


def _known(platform: str | None) -> str | None:
    if platform is not None and platform not in PLATFORMS:
        raise UsageError(f"--platform must be {' or '.join(PLATFORMS)}")
    return platform


def _codec(encoding: str | None) -> str | None:
    lines = "pageId,pageName\n" * 10  # long enough for codecs of short names, such as idna
    try:
        decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
        if decoder.decode(lines.encode(encoding or "utf-8"), final=True) == lines:
            return encoding
    except (LookupError, UnicodeError):
        pass
    raise UsageError("--encoding must be the name of a text encoding, such as cp1252")


def _size(reading: Reading) -> int | None:
    """Bytes of all inputs, or None where one is not a file."""
    if not all(Path(path).is_file() for path in reading.paths):
        return None
    return sum(os.path.getsize(path) for path in reading.paths)
