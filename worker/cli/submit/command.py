"""`ott-worker submit`."""

import codecs
import os
from pathlib import Path
from typing import Annotated

import typer

from worker.cli import output
from worker.contract.platforms import PLATFORM_NAME, PLATFORMS
from worker.contract.timestamps import microseconds
from worker.errors import UsageError
from worker.files.cells import printable
from worker.files.rows import Format, Reading
from worker.files.source import STANDARD_INPUT
from worker.settings import load_settings


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
    input_format: Annotated[
        Format | None, typer.Option("--format", help="Default: recognised by the content or the file name.")
    ] = None,
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
    timeout: Annotated[
        float | None, typer.Option(help="Give up after so many seconds without a reply.", min=0.1)
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
    platform = _known(platform)
    if template:
        output.write(",".join(_template(platform)))
        return 0
    if not files:
        raise UsageError("Missing argument 'FILE...' (see --help)")
    reading = Reading(
        tuple(files), platform, input_format, _codec(encoding), sheet, send_unknown, _as_of(as_of)
    )
    if no_wait and (results or failed or resume or check):
        raise UsageError("--no-wait follows no replies: leave out --results, --failed, --resume and --check")
    if resume and (not results or check):
        raise UsageError("--resume goes on from a results file: name it with --results, without --check")
    _check_paths(files, results, failed)
    settings = load_settings()
    # The help needs no broker's client.
    from worker.cli.submit.job import Outputs, check_rows, run_job  # noqa: PLC0415
    from worker.files.submission import SubmissionPlan  # noqa: PLC0415

    outputs = Outputs(results, failed, resume=resume, quiet=quiet)
    if check:
        return check_rows(reading, outputs, settings.max_body_bytes, send_damaged=send_damaged)
    plan = SubmissionPlan(reading, account, outstanding, rate, not no_wait, timeout, send_damaged)
    return run_job(settings, plan, outputs)


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


def _template(platform: str | None) -> list[str]:
    platforms = [PLATFORMS[platform]] if platform else PLATFORMS.values()
    return [PLATFORM_NAME, *dict.fromkeys(name for each in platforms for name in each.fields)]


def _is_same_file(path: str, results: Path) -> bool:
    try:
        return os.path.samefile(0 if path == STANDARD_INPUT else path, results)
    except OSError:
        return False  # one of them is not there


def _known(platform: str | None) -> str | None:
    if platform is not None and platform not in PLATFORMS:
        raise UsageError(f"--platform must be {' or '.join(PLATFORMS)}")
    return platform


def _as_of(given: str | None) -> int | None:
    """Microseconds since the epoch, 0 for `now`, None for the time of the file."""
    if given is None or given == "now":
        return None if given is None else 0
    moment = microseconds(given.upper())
    if moment is None:
        raise UsageError("--as-of must be now, or a time with its offset such as 2026-11-23T12:00:00Z")
    return max(1, moment)


def _codec(encoding: str | None) -> str | None:
    lines = "pageId,pageName\n" * 10  # longer than codecs for host names accept, such as idna
    try:
        decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
        if decoder.decode(lines.encode(encoding or "utf-8"), final=True) == lines:
            return encoding
    except (LookupError, UnicodeError):
        pass
    raise UsageError("--encoding must be the name of a text encoding, such as cp1252")
