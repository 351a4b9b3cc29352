"""`ott-worker dead-letters replay`, `discard` and `export`."""

import asyncio
import os
import sys
from collections import Counter
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from worker.cli import output
from worker.cli.dead_letters.look import filtered, tell_missing
from worker.cli.output import Column, Table, text_of
from worker.cli.terminal import Json, Say, agreed, letters, on_end
from worker.contract.selection import Selection
from worker.contract.settlement import why_unregistered
from worker.dead_letters.letter import NAMED
from worker.dead_letters.patch import HEADER, Patches, parse, read_patches, row
from worker.dead_letters.plan import FORECASTS, Plan
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.run import BAD, Run
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.settings import load_settings

All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

SEE_WHY = "ott-worker dead-letters list --by error"
TOLD_REASONS = 5  # reasons why letters stay that are printed; --dry-run prints all


def _would_be(row: dict[str, Any]) -> str:
    return ": ".join(filter(None, (FORECASTS[row["outcome"]].label, row["why"])))


FORECAST_COLUMNS = (
    Column("LETTER", text_of("letter")),
    Column("REASON", text_of("reason"), rank=3),
    Column("RESOURCE", text_of("resourceId"), rank=2),
    Column("WOULD BE", _would_be, least=32),
    Column("REQUEST", text_of("id"), rank=4),
)


@filtered
def replay(
    selection: Selection,
    all_: All = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Correct a field first; VALUE may be @FILE."),
    ] = None,
    patch_file: Annotated[
        str | None,
        typer.Option("--patch", metavar="FILE", help="Correct each letter by its row in an exported file."),
    ] = None,
    same_for_all: Annotated[
        bool, typer.Option("--same-for-all", help="Let --set give several pages or channels the same value.")
    ] = False,
    rate: Annotated[float | None, typer.Option(help="Letters a second, at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replay even what is older than a registration, or rejected.")
    ] = False,
    accept_unencrypted: Annotated[
        bool, typer.Option("--accept-unencrypted", help="Also replay unencrypted ones although keys are set.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only publish; follow no outcomes.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Send dead letters through the worker again, oldest first, and print the outcomes.

    A letter with a newer registration of its resource is answered "superseded" instead.

    Example: ott-worker dead-letters replay --reason exhausted --since 2h --dry-run

    ott-worker dead-letters replay a1f2c0a52d0b14a5 --set pageAccessToken=@token.txt

    ott-worker dead-letters replay --patch letters.csv"""
    if rate is not None and not 0 < rate < 1e6:
        raise UsageError("--rate must be a number above 0")
    if patch_file is not None and assignments:
        raise UsageError("--patch and --set cannot be combined: change the cells of the file")
    patches = Patches(parse(assignments or ())) if patch_file is None else read_patches(patch_file)
    if selection.is_everything and not all_:
        selection = Selection(id=patches.names)
    plan = Plan("replay", selection, patches, force, accept_unencrypted, same_for_all)
    return _change(
        plan, everything=all_, yes=yes, as_json=as_json, dry_run=dry_run, rate=rate, follow=not no_wait
    )


@filtered
def discard(selection: Selection, all_: All = False, yes: Yes = False, as_json: Json = False) -> int:
    """Remove dead letters for good.

    Example: ott-worker dead-letters discard --reason invalid --until 30d --yes"""
    return _change(Plan("discard", selection), everything=all_, yes=yes, as_json=as_json)


@filtered
def export(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="The file to write. Only you can read it.")],
    selection: Selection,
    reveal: Annotated[bool, typer.Option("--reveal", help="Write the values of secrets too.")] = False,
) -> int:
    """Write dead letters to a CSV file, one row each: correct it in a spreadsheet, then replay --patch FILE.

    Changes nothing in the queue. In the file, an unchanged or empty cell changes nothing.

    Example: ott-worker dead-letters export letters.csv --reason rejected"""

    async def look() -> tuple[list[bytes], frozenset[str]]:
        async with open_dead_letters(load_settings(), say) as queue:
            return await queue.find(selection, partial(row, reveal=reveal))

    say = Say()
    rows, missing = asyncio.run(look())
    try:
        # An existing file may be readable for others.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            os.fchmod(opened.fileno(), 0o600)
            opened.writelines([HEADER, *rows])
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    output.line(f"{letters(len(rows))} written to {file}.")
    tell_missing(say, missing, rows)
    return 1 if missing else 0


def _change(
    plan: Plan,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
    dry_run: bool = False,
    rate: float | None = None,
    follow: bool = False,
) -> int:
    """Print the plan, ask, and execute it. Returns the exit code."""
    if plan.selection.is_everything and not everything:
        raise UsageError(f"{plan.kind} needs a filter, or --all for every dead letter")
    if plan.kind == "discard" and not yes and not sys.stdin.isatty():
        raise UsageError("discard is permanent; without a terminal, confirm with --yes")
    say = Say()
    run = Run(load_settings(), plan, say)
    asyncio.run(run.look())
    tell_missing(say, plan.missing - plan.patches.names, plan.letters)
    if plan.unpatched:
        rows = f"{len(plan.unpatched)} rows of the table"
        say(f"{rows} match no dead letter, such as {min(plan.unpatched)}")
    is_missing = bool(plan.missing or plan.unpatched)
    if dry_run:
        return _print_plan(plan, as_json=as_json) or int(is_missing)
    if not plan.letters:
        return int(is_missing)
    _print_forecast(plan, say)
    if plan.refusal:
        return 1
    if not yes and sys.stdin.isatty() and not agreed(f"{_matching(plan)} Continue?"):
        say(f"nothing was {run.participle}")
        return 1
    return _carry_out(run, say, rate, follow=follow, as_json=as_json) or int(is_missing)


def _carry_out(run: Run, say: Say, rate: float | None, *, follow: bool, as_json: bool) -> int:
    """Execute the plan, and print the result and the next step. Returns the exit code."""
    try:
        asyncio.run(_perform(run, rate, follow=follow))
    except BrokerUnreachable as lost:
        raise BrokerUnreachable(f"{lost}: run it again for the remaining letters") from None
    finally:
        _report(run, as_json=as_json)
        say(run.absent)
    if run.is_stopping:
        rest = "the remaining dead letters were not touched" if run.left else "see ott-worker journal"
        raise Interrupted(f"stopped: {rest}")
    failed_again = sum(run.statuses[status] for status in BAD)
    if failed_again:
        say(f"{letters(failed_again)} came back: {SEE_WHY}")
    elif (staying := run.plan.total - run.done - len(run.gone)) > 0:
        say(f"{letters(staying)} in the queue: {SEE_WHY}")
    return 1 if run.left or run.gone or failed_again else 0


async def _perform(run: Run, rate: float | None, *, follow: bool) -> None:
    """Perform a run, with a progress bar if standard error is a terminal. Signals stop it."""
    on_end(run.stop)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{run.plan.kind.capitalize()}ing", total=len(run.plan.going))
        run.progressed = lambda: bar.update(task, completed=run.done)
        await run.perform(rate=rate, follow=follow)


def _report(run: Run, *, as_json: bool) -> None:
    if as_json:
        for key, record in run.outcomes.items():
            output.json_line({"letter": key, **record})
        not_replayable = run.plan.counts["not_replayable"]
        output.json_line({run.participle: run.done, "left": run.left, "notReplayable": not_replayable})
        return
    is_unknown = run.plan.kind == "replay" and run.done and not run.is_followed
    hint = " ott-worker journal shows their outcomes." if is_unknown else ""
    output.line(f"{letters(run.done)} {run.participle}, {run.left} left.{hint}")
    # A line for each letter, or for each group if there are many.
    became = {key: _became(record) for key, record in run.outcomes.items()}
    if len(became) <= NAMED:
        for key, record in run.outcomes.items():
            output.line(f"{key}  {record['id']}  {record.get('resourceId') or '-'}  {became[key]}")
    else:
        for what, count in Counter(became.values()).most_common():
            output.line(f"{count} {what}")
    if run.missing and became:
        output.line(f"{run.missing} not known yet")


def _became(record: dict[str, Any]) -> str:
    if record["status"] == "registered":
        return "registered"
    why = why_unregistered(record)
    return why if record["status"] == "superseded" else f"{record['status']}: {why}"


def _print_plan(plan: Plan, *, as_json: bool) -> int:
    rows = [{**each.facts, "outcome": each.outcome, "why": each.why or None} for each in plan.letters]
    if as_json:
        for row in rows:
            output.json_line(row)
    else:
        if rows:
            Table(FORECAST_COLUMNS, rows, output.width()).print()
        output.line(_matching(plan))
    return 1 if plan.refusal or len(plan.going) < len(plan.letters) else 0


def _matching(plan: Plan) -> str:
    return f"{len(plan.letters)} of {letters(plan.total)} match: {plan.sentence}"


def _print_forecast(plan: Plan, say: Say) -> None:
    """Print which letters would be superseded and by what, and which stay and why."""
    superseded = [letter for letter in plan.letters if letter.outcome == "superseded"]
    for letter in superseded[:NAMED]:
        facts = letter.facts
        which = f"{letter.key}  {facts['resourceId'] or '-'}  request {facts['id']}"
        say(output.printable(f"{which} would be superseded by {letter.why}"))
    if len(superseded) > NAMED:
        say(f"and {len(superseded) - NAMED} more would be superseded: see --dry-run")
    for outcome, forecast in FORECASTS.items():
        if outcome in plan.staying:
            staying = Counter(each.why for each in plan.letters if each.outcome == outcome and each.why)
            for problem, count in staying.most_common(TOLD_REASONS):
                say(f"{letters(count)} {forecast.words}: {problem}")
    if plan.refusal:
        say(f"{plan.refusal}. Nothing was replayed; --force replays them anyway")
