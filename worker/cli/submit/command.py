"""`ott-worker submit`: checks or sends rows, shows the outcomes and writes them to files."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from worker.cli import output
from worker.cli.submit import report
from worker.cli.terminal import Say, known, on_end
from worker.contract.platforms import PLATFORM_NAME, PLATFORMS
from worker.contract.timestamps import moment
from worker.errors import UsageError
from worker.files.cells import printable
from worker.files.damage import Kind
from worker.files.job import Plan
from worker.files.job_database import INVALID, JobDatabase, RowResult
from worker.files.results import FailedRows, Results
from worker.files.rows import Group, Reading
from worker.files.source import Corrupt
from worker.settings import Settings, load_settings

MOST_PLACES = 1000  # positions that are listed for one kind of problem


def submit(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Inputs in order; - is standard input.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Write a line for each row: CSV for a name in .csv, else JSON lines.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip rows that are registered according to --results.")
    ] = False,
    failed: Annotated[
        Path | None, typer.Option(help="Write the rows that were not registered, with error and line.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only validate; needs no broker.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only publish; follow no replies.")] = False,
    platform: Annotated[
        str | None, typer.Option(help=f"For rows without one: {' or '.join(PLATFORMS)}.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="Business unit (MID) of rows without accountId or MID.")
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
        int | None, typer.Option(help="Rows without a reply, at most. Default: two seconds' worth.", min=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Rows a second, at most.", min=0.01)] = None,
    as_of: Annotated[
        str | None, typer.Option(help="When the rows were true (or now). Default: the file's last change.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> int:
    """Register a file of pages and channels.

    The file is CSV or a workbook (.xlsx) with the attributes in its header,
    JSON lines, or a JSON array, each also as .gz. Rows count from 1 over all
    files. --check reports what to correct, and sends nothing.

    Ctrl-C stops; the same command with --resume continues. --resume accepts
    the corrected input, or only the rows that failed.

    Example: ott-worker submit pages.csv --platform messenger --results results.jsonl"""
    known("--platform", [platform] if platform else (), PLATFORMS)
    if template:
        platforms = [PLATFORMS[platform]] if platform else PLATFORMS.values()
        names = dict.fromkeys(name for each in platforms for name in each.fields)
        output.write(",".join([PLATFORM_NAME, *names]))
        return 0
    if not files:
        raise UsageError("Missing argument 'FILE...' (see --help)")
    if no_wait and (results or failed or resume or check):
        raise UsageError("--no-wait follows no replies: leave out --results, --failed, --resume and --check")
    if resume and (not results or check):
        raise UsageError("--resume needs --results FILE and cannot be combined with --check")
    try:
        b"pageId".decode(encoding or "utf-8", "replace")
    except (LookupError, UnicodeError):
        raise UsageError("--encoding must be the name of a text encoding, such as cp1252") from None
    _check_paths(files, results, failed)
    true_at = 0 if as_of == "now" else moment(as_of, "--as-of")
    plan = Plan(
        Reading(tuple(files), platform, encoding, sheet, send_unknown, true_at, failed),
        account_id=account,
        outstanding=outstanding,
        rate=rate,
        wait=not no_wait,
        send_damaged=send_damaged,
        results=results,
        resumed=resume,
    )
    settings = load_settings()
    if check:
        return _check(settings, plan, quiet=quiet)
    return uvloop.run(_run(settings, plan, quiet=quiet))


def _check(settings: Settings, plan: Plan, *, quiet: bool) -> int:
    """Validate every row, and print the problems. Nothing is sent."""
    groups: dict[tuple[Kind, str], Group] = {}
    total = invalid = 0
    with JobDatabase() as database:
        with suppress(Corrupt):  # it is reported below, after the rows before it
            database.take(plan.reading)
        with _outputs(plan, database) as results:
            try:
                for row in plan.reading.rows():
                    if not plan.reading.rereadable:
                        database.add(row)
                    found = database.findings(row, settings.max_body_bytes, send_damaged=plan.send_damaged)
                    for problem in found:
                        group = groups.setdefault((problem.kind, problem.column), Group(MOST_PLACES))
                        group.add(f"{row.where(problem.field)}{problem.about}")
                    total += 1
                    invalid += bool(found)
                    if found and results:
                        results.write(RowResult.unsent(row, None, INVALID, found))
                    if found and plan.reading.failed:
                        database.add_failed(row, found)
            finally:  # also if the rest of the input cannot be read
                if not quiet:
                    console = report.console_for_results()
                    report.show_findings(console, groups)
                    for warning in database.warnings(plan.reading):
                        report.print_line(console, f"Warning: {warning}")
                    counts = f"{total - invalid:,} valid, {invalid:,} invalid"
                    report.print_line(console, f"{report.rows(total)}: {counts}.")
    return 1 if invalid else 0


async def _run(settings: Settings, plan: Plan, *, quiet: bool) -> int:
    """Submit all rows. SIGINT, SIGTERM and SIGHUP end it early."""
    # --check and the help do not need the AMQP client.
    from worker.files.submission import Submission  # noqa: PLC0415

    stop, say, reading = asyncio.Event(), Say(is_quiet=quiet), plan.reading
    on_end(stop.set)
    with JobDatabase() as database:
        total = await asyncio.to_thread(database.take, reading, stop.is_set)
        with _outputs(plan, database) as results:
            _warn(database, reading, say)
            if plan.resumed and database.job is None:
                # Only a result shows the id of the earlier job.
                say(f"{plan.results} has no result of an earlier run: every row is sent, as a new job")
            job = Submission(settings, plan, database, results)
            job.tally.total = total
            started = asyncio.get_running_loop().time()
            try:
                console = Console(stderr=True, highlight=False, quiet=quiet)
                async with report.shown(console, job.tally, job.notices, wait=plan.wait):
                    await job.run(stop)
            finally:
                _warn(database, reading, say)  # again, because standard input is known only now
                if job.tally.read and not quiet:
                    seconds = asyncio.get_running_loop().time() - started
                    console, out = report.console_for_results(), len(job.out.rows)
                    report.show_summary(console, job.tally, out, seconds, wait=plan.wait)
    return 0 if job.tally.all_well else 1


@contextmanager
def _outputs(plan: Plan, database: JobDatabase) -> Iterator[Results | None]:
    """The results file, open within the context. At the end the failed rows are written. Raises UsageError
    for a file that may not be replaced. A job that cannot begin keeps the failed rows of an earlier one."""
    reading = plan.reading
    failed = FailedRows(reading.failed, reading.tables) if reading.failed else None
    kept = database if plan.resumed else None
    is_over = False
    with Results(plan.results, kept) if plan.results else nullcontext() as results:
        try:
            yield results
            is_over = True
        finally:
            if failed and (is_over or any(database.failed())):
                failed.write(database)


def _warn(database: JobDatabase, reading: Reading, say: Say) -> None:
    for warning in database.warnings(reading):
        say(warning)


def _check_paths(files: list[str], results: Path | None, failed: Path | None) -> None:
    """Raises UsageError if a file has two roles."""
    roles: dict[Path, str] = {}
    for option, path in [*(("", name) for name in files), ("--results ", results), ("--failed ", failed)]:
        if path is not None:
            role, other = printable(f"{option}{path}"), roles.get(Path(path).resolve())
            if other is not None:
                raise UsageError(f"{role} and {other} are the same file: name another file")
            roles[Path(path).resolve()] = role
