"""`ott-worker submit`: the rows are checked, or sent, and what became of them is shown and written."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop
from rich.console import Console

from worker.cli import output
from worker.cli.submit.report import (
    console_for_results,
    print_line,
    rows,
    show_findings,
    show_summary,
    shown,
)
from worker.cli.terminal import Say, on_end
from worker.contract.platforms import PLATFORM_NAME, PLATFORMS
from worker.contract.timestamps import microseconds
from worker.errors import UsageError
from worker.files.cells import printable
from worker.files.check import findings
from worker.files.damage import Kind
from worker.files.failed_rows import FailedRows
from worker.files.job_database import INVALID, JobDatabase, RowResult
from worker.files.results import Results
from worker.files.rows import Group, Reading
from worker.files.source import STANDARD_INPUT
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from worker.files.submission import SubmissionPlan

MOST_PLACES = 1000  # of one kind of problem that are named one by one


def submit(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Inputs in order; - is standard input.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write a line for each row: CSV for a name in .csv, else JSON lines.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out the rows that --results holds as registered.")
    ] = False,
    failed: Annotated[
        Path | None,
        typer.Option(help="Write the rows that were not registered, as they came, with error and line."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only validate; needs no broker.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only publish; follow no replies.")] = False,
    platform: Annotated[
        str | None, typer.Option(help=f"For rows that name none: {' or '.join(PLATFORMS)}.")
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(help="Business unit (MID) of rows that name none in a column accountId or MID."),
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print the header of a CSV file, for --platform or for all.")
    ] = False,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of files that are not Unicode, such as cp932 or cp1252.")
    ] = None,
    sheet: Annotated[
        str | None, typer.Option(help="Name of the workbook's sheet. Default: the first visible one.")
    ] = None,
    send_damaged: Annotated[
        bool, typer.Option("--send-damaged", help="Also send rows that a spreadsheet seems to have damaged.")
    ] = False,
    send_unknown: Annotated[
        bool, typer.Option("--send-unknown", help="Also send columns that are not attributes.")
    ] = False,
    outstanding: Annotated[
        int | None,
        typer.Option(
            help="Rows that may wait for their reply at one time. Default: what is settled in two seconds.",
            min=1,
            max=100_000,
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Rows a second at most.", min=0.01)] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            help="When the rows were true: a time such as 2026-11-23T12:00:00Z, or now. Nothing newer is "
            "overwritten. Default: when the file was changed.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Register a file of pages and channels.

    The file is CSV or a workbook (.xlsx), whose header names the attributes, JSON lines, or a JSON array;
    gzip is unpacked. --check reports what to correct in the file, and sends nothing.

    Rows are counted from 1 over all files. Ctrl-C stops; the same command with --resume goes on. It takes the
    corrected input, or only the rows that failed.

    With --resume, --results may hold several lines for one row. The last one counts.

    Example: ott-worker submit pages.csv --platform messenger --results results.jsonl
    """
    if platform is not None and platform not in PLATFORMS:
        raise UsageError(f"--platform must be {' or '.join(PLATFORMS)}")
    if template:
        platforms = [PLATFORMS[platform]] if platform else PLATFORMS.values()
        names = dict.fromkeys(name for each in platforms for name in each.fields)
        output.write(",".join([PLATFORM_NAME, *names]))
        return 0
    if not files:
        raise UsageError("Missing argument 'FILE...' (see --help)")
    reading = Reading(tuple(files), platform, _codec(encoding), sheet, send_unknown, _as_of(as_of))
    if no_wait and (results or failed or resume or check):
        raise UsageError("--no-wait follows no replies: leave out --results, --failed, --resume and --check")
    if resume and (not results or check):
        raise UsageError("--resume goes on from a results file: name it with --results, without --check")
    _check_paths(files, results, failed)
    settings = load_settings()
    if check:
        limit = settings.max_body_bytes
        return _check(reading, results, failed, limit, send_damaged=send_damaged, quiet=quiet)
    # --check and the help need no broker's client.
    from worker.files.submission import SubmissionPlan  # noqa: PLC0415

    plan = SubmissionPlan(
        reading,
        account_id=account,
        outstanding=outstanding,
        rate=rate,
        wait=not no_wait,
        send_damaged=send_damaged,
        resumed=resume,
        gives_back=failed is not None,
    )
    return uvloop.run(_run(settings, plan, results, failed, quiet=quiet))


def _check(
    reading: Reading,
    results_path: Path | None,
    failed_path: Path | None,
    max_body_bytes: int,
    *,
    send_damaged: bool,
    quiet: bool,
) -> int:
    groups: dict[tuple[Kind, str], Group] = {}
    total = invalid = 0
    with ExitStack() as stack:
        database = stack.enter_context(JobDatabase())
        if reading.rereadable:
            database.take(reading)
        failed = FailedRows(failed_path, reading) if failed_path else None
        results = stack.enter_context(Results(results_path)) if results_path else None
        for total, row in enumerate(reading.rows(), 1):  # noqa: B007 (counted)
            if not reading.rereadable:
                database.add(row)
            found = findings(row, database, max_body_bytes, send_damaged=send_damaged)
            for problem in found:
                group = groups.setdefault((problem.kind, problem.column), Group(MOST_PLACES))
                group.add(f"{row.where(problem.field)}{problem.about}")
            invalid += bool(found)
            if found and results:
                results.write(RowResult.unsent(row, None, INVALID, found))
            if found and failed:
                database.give_back(row, found)
        if failed:
            failed.write(database)
        if not quiet:
            console = console_for_results()
            show_findings(console, groups)
            for warning in database.warnings(reading):
                print_line(console, f"Warning: {warning}")
            print_line(console, f"{rows(total)}: {total - invalid:,} valid, {invalid:,} invalid.")
    return 1 if invalid else 0


async def _run(
    settings: Settings,
    plan: "SubmissionPlan",
    results_path: Path | None,
    failed_path: Path | None,
    *,
    quiet: bool,
) -> int:
    """Submit all rows. SIGINT, SIGTERM and SIGHUP end it early."""
    from worker.files.submission import Submission  # noqa: PLC0415 (as above)

    stop, say, reading = asyncio.Event(), Say(is_quiet=quiet), plan.reading
    on_end(stop.set)
    with ExitStack() as stack:
        database = stack.enter_context(JobDatabase())
        total = None
        if reading.rereadable:
            total = await asyncio.to_thread(database.take, reading, stop.is_set)
        failed = FailedRows(failed_path, reading) if failed_path else None
        resumed = database if plan.resumed else None
        results = stack.enter_context(Results(results_path, resumed)) if results_path else None
        if reading.rereadable:
            _warn(database, reading, say)
        if resumed and database.job is None:
            # Its answers would tell which job it was; without any, what it had out is sent once more.
            say(f"{results_path} holds no answer of an earlier run: every row is sent, as a new job")
        job = Submission(settings, plan, database, results)
        job.tally.total = total
        started = asyncio.get_running_loop().time()
        try:
            console = Console(stderr=True, highlight=False, quiet=quiet)
            async with shown(console, job.tally, job.notices, wait=plan.wait):
                await job.run(stop)
        finally:
            if failed:
                failed.write(database)
            if not reading.rereadable:
                _warn(database, reading, say)
            if job.tally.read and not quiet:
                seconds = asyncio.get_running_loop().time() - started
                show_summary(console_for_results(), job.tally, len(job.out), seconds, wait=plan.wait)
    return 0 if job.tally.all_well else 1


def _warn(database: JobDatabase, reading: Reading, say: Say) -> None:
    for warning in database.warnings(reading):
        say(warning)


def _check_paths(files: list[str], results: Path | None, failed: Path | None) -> None:
    if files.count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input (-) can be read only once")
    if twice := next((name for name in files if files.count(name) > 1), None):
        raise UsageError(f"{printable(twice)} is given twice")
    if results and failed and (results == failed or _is_same_file(str(results), failed)):
        raise UsageError("--results and --failed name the same file")
    for option, path in (("--results", results), ("--failed", failed)):
        if path and path.is_file() and any(_is_same_file(name, path) for name in files):
            raise UsageError(f"{option} {path} is an input too: name another file")


def _is_same_file(path: str, results: Path) -> bool:
    try:
        return os.path.samefile(0 if path == STANDARD_INPUT else path, results)
    except OSError:
        return False  # one of them is not there


def _as_of(given: str | None) -> int | None:
    """Microseconds since the epoch, 0 for `now`, None for the time of the file."""
    if given is None or given == "now":
        return None if given is None else 0
    moment = microseconds(given.upper())
    if moment is None:
        raise UsageError("--as-of must be now, or a time with its offset such as 2026-11-23T12:00:00Z")
    return max(1, moment)


def _codec(encoding: str | None) -> str | None:
    text = "pageId,pageName\n" * 10  # longer than codecs for host names accept, such as idna
    try:
        if encoding is None or text.encode(encoding).decode(encoding) == text:
            return encoding
    except (LookupError, UnicodeError):
        pass
    raise UsageError("--encoding must be the name of a text encoding, such as cp1252")
