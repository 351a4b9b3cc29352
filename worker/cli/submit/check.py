"""`submit --check`: the report from which a file is corrected (contract §12)."""

from contextlib import ExitStack

from rich.console import Console

from worker.cli.submit.outputs import Outputs
from worker.cli.submit.progress import console_for_results, rows
from worker.files.check import Findings, ProblemGroup, findings
from worker.files.damage import Kind, Problem
from worker.files.job_database import JobDatabase
from worker.files.results import INVALID, RowResult
from worker.files.rows import Reading

SHOWN_PLACES = 20  # of one kind, on a terminal


def check_rows(reading: Reading, outputs: Outputs, max_body_bytes: int, *, send_damaged: bool) -> int:
    """Validate every row, show what is wrong, and return the exit code. Nothing is sent."""
    outputs.check_results()
    reading.probe()
    found = Findings()
    with ExitStack() as stack:
        database = stack.enter_context(JobDatabase())
        failed = outputs.failed_rows(reading)
        results = outputs.open_results(stack)
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
            _show(found, database, reading)
    return 1 if found.invalid else 0


def _show(found: Findings, database: JobDatabase, reading: Reading) -> None:
    console = console_for_results()
    show_findings(console, found)
    for warning in database.warnings(reading):
        _line(console, f"Warning: {warning}")
    _line(console, f"{rows(found.rows)}: {found.rows - found.invalid:,} valid, {found.invalid:,} invalid.")


def show_findings(console: Console, findings: Findings) -> None:
    """Problems by kind, the most frequent first: what is wrong, what is allowed, what to do, and where."""
    groups = sorted(findings.groups.items(), key=lambda item: -item[1].rows)
    for kind, group in groups:
        _line(console, f"{_title(kind, group)}")
        _line(console, f"  Allowed: {kind.allowed}.")
        _line(console, f"  To do: {kind.advice}")
        shown = group.places[:SHOWN_PLACES] if console.is_terminal else group.places
        for place, problem in shown:
            _line(console, f"    {place}{_about(problem)}")
        if group.rows > len(shown):
            _line(console, f"    … and {group.rows - len(shown):,} more; --results FILE names all of them")
        console.print()


def _title(kind: Kind, group: ProblemGroup) -> str:
    field = group.places[0][-1].field
    names_its_field = bool(field) and kind.what.startswith(field)  # such as isTransactional
    what = kind.what if kind.what[:1].isupper() or names_its_field else f"{_subject(group)} {kind.what}"
    return f"{what.rstrip('.')}: {rows(group.rows)}"


def _subject(group: ProblemGroup) -> str:
    columns = list(dict.fromkeys(problem.column for _, problem in group.places if problem.column))
    return " or ".join(columns) or "The row"


def _about(problem: Problem) -> str:
    column = f", column {problem.column}" if problem.column else ""
    value = f": {problem.value}" if problem.value else ""
    return f"{column}{value}{f' ({problem.remark})' if problem.remark else ''}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
