"""`ott-worker dead-letters replay` and `discard`: what changes the queue."""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from worker.cli import output
from worker.cli.options import All, Json, Yes, filtered, require_filter
from worker.cli.output import Column, Table, text_of
from worker.cli.terminal import Say, agreed, letters, on_end
from worker.contract.settlement import why_unregistered
from worker.dead_letters import patch
from worker.dead_letters.facts import NAMED, Selection, few
from worker.dead_letters.patch import Patches
from worker.dead_letters.plan import FORECASTS, Outcome, Plan, Planned, Wish
from worker.dead_letters.run import BAD, Run
from worker.dead_letters.table import read_patches
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.settings import load_settings

SEE_WHY = "ott-worker dead-letters list --by error"
FORECAST_COLUMNS = (
    Column("LETTER", text_of("letter")),
    Column("REASON", text_of("reason"), rank=3),
    Column("RESOURCE", text_of("resourceId"), rank=2),
    Column("WOULD BE", lambda row: ": ".join(filter(None, (_label(row), row["why"]))), least=32),
    Column("REQUEST", text_of("id"), rank=4),
)
TOLD_REASONS = 5  # why letters cannot be replayed; --dry-run tells it of each


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
        typer.Option(
            "--patch", metavar="FILE", help="Correct each letter by its row in a file that export wrote."
        ),
    ] = None,
    same_for_all: Annotated[
        bool, typer.Option("--same-for-all", help="Let --set give several pages or channels the same value.")
    ] = False,
    rate: Annotated[float | None, typer.Option(help="Letters a second, at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replay even what overwrites a newer registration or would be rejected again."
        ),
    ] = False,
    accept_unencrypted: Annotated[
        bool,
        typer.Option("--accept-unencrypted", help="Also replay unencrypted letters although keys are set."),
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Only publish; do not wait for the outcomes.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Send dead letters through the worker again, oldest first, and tell what became of them.

    One that a newer registration of its resource has overtaken is answered "superseded" instead.

    Example: ott-worker dead-letters replay --reason exhausted --since 2h --dry-run

    ott-worker dead-letters replay a1f2c0a52d0b14a5 --set pageAccessToken=@token.txt

    ott-worker dead-letters replay --patch letters.csv
    """
    if rate is not None and not 0 < rate < 1e6:
        raise UsageError("--rate must be a number above 0")
    if patch_file is not None and assignments:
        raise UsageError("--patch and --set cannot be combined: change the cells of the file")
    patches = Patches(patch.parse(assignments or ())) if patch_file is None else read_patches(patch_file)
    if selection.is_everything and patches.names and not all_:
        selection = Selection(ids=patches.names)
    require_filter(selection, "replay", everything=all_)
    say = Say()
    run = Run(
        load_settings(), Wish("replay", selection, patches, force, accept_unencrypted, same_for_all), say
    )
    plan = _planned(run, say)
    unknown = Selection(ids=patches.names).missing(plan.letters)
    if unknown:
        say(f"{patch_file}: {len(unknown)} rows name no dead letter that matches, such as {min(unknown)}")
    if dry_run:
        return _print_plan(plan, as_json=as_json) or (1 if plan.missing or unknown else 0)
    code = _carry_out(run, plan, say, yes=yes, as_json=as_json, rate=rate, follow=not no_wait)
    return code or (1 if unknown else 0)


@filtered
def discard(selection: Selection, all_: All = False, yes: Yes = False, as_json: Json = False) -> int:
    """Remove dead letters for good.

    Example: ott-worker dead-letters discard --reason invalid --until 30d --yes
    """
    require_filter(selection, "discard", everything=all_)
    if not yes and not sys.stdin.isatty():
        raise UsageError("discard is permanent; without a terminal, confirm with --yes")
    say = Say()
    run = Run(load_settings(), Wish("discard", selection), say)
    return _carry_out(run, _planned(run, say), say, yes=yes, as_json=as_json)


def _planned(run: Run, say: Say) -> Plan:
    plan = asyncio.run(run.plan())
    missing = plan.missing - run.wish.patches.names  # these are told with their file
    if missing or not plan.letters:
        say(f"no dead letter matches {few(missing)}".rstrip())
    return plan


def _carry_out(
    run: Run,
    plan: Plan,
    say: Say,
    *,
    yes: bool,
    as_json: bool,
    rate: float | None = None,
    follow: bool = False,
) -> int:
    """Ask, do it, say what was done and what is left to do; the exit code."""
    done = "replayed" if run.wish.kind == "replay" else "discarded"
    if not plan.letters:
        return 1 if run.wish.selection.ids else 0
    _tell_before(plan, say)
    if plan.refusal:
        return 1
    if not yes and sys.stdin.isatty() and not agreed(f"{_matching(plan)} Go on?"):
        say(f"nothing was {done}")
        return 1
    lost = asyncio.run(_performed(run, plan, rate=rate, follow=follow))
    _report(run, plan, done, as_json=as_json)
    say(run.absent)
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.is_stopping:
        rest = "the remaining dead letters were not touched" if run.left else "see ott-worker journal"
        raise Interrupted(f"stopped: {rest}")
    died_again = sum(run.statuses[status] for status in BAD)
    if died_again:
        say(f"{letters(died_again)} came back: {SEE_WHY}")
    elif (staying := plan.total - run.done - len(run.gone)) > 0:
        say(f"{letters(staying)} in the queue: {SEE_WHY}")
    return 1 if plan.missing or run.left or run.gone or died_again else 0


async def _performed(run: Run, plan: Plan, *, rate: float | None, follow: bool) -> BrokerUnreachable | None:
    """Perform a run with a progress bar on standard error, where that is a terminal. Signals stop it.
    What cut it short."""
    on_end(run.stop)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{run.wish.kind.capitalize()}ing", total=len(plan.going))
        run.progressed = lambda: bar.update(task, completed=run.done)
        try:
            await run.perform(rate=rate, follow=follow)
        except BrokerUnreachable as error:
            return error
    return None


def _report(run: Run, plan: Plan, done: str, *, as_json: bool) -> None:
    is_replay = run.wish.kind == "replay"
    if as_json:
        for record in run.outcomes.values():
            output.json_line(record)
        more = {"left": run.left, "unfit": plan.counts["unfit"]} if is_replay else {}
        output.json_line({done: run.done, **more})
        return
    is_unknown = is_replay and run.done and not run.is_followed
    hint = " ott-worker journal shows what came of them." if is_unknown else ""
    output.line(f"{letters(run.done)} {done}, {run.left} left.{hint}")
    for line in _outcomes(run):
        output.line(line)


def _print_plan(plan: Plan, *, as_json: bool) -> int:
    rows = [_forecast(letter) for letter in plan.letters]
    if as_json:
        for row in rows:
            output.json_line(row)
    else:
        if rows:
            Table(FORECAST_COLUMNS, rows, output.width()).print()
        output.line(_matching(plan))
    output.flush()
    return 1 if plan.refusal or len(plan.going) < len(plan.letters) else 0


def _forecast(letter: Planned) -> dict[str, Any]:
    facts = letter.facts.document()
    names = ("letter", "id", "reason", "error", "ottPlatformName", "resourceId")
    return {**{name: facts[name] for name in names}, "outcome": letter.outcome, "why": letter.why or None}


def _label(row: dict[str, Any]) -> str:
    outcome: Outcome = row["outcome"]
    return FORECASTS[outcome].label


def _matching(plan: Plan) -> str:
    return f"{len(plan.letters)} of {letters(plan.total)} match: {plan.sentence}"


def _tell_before(plan: Plan, say: Say) -> None:
    """Say which letters would be superseded, by what, which stay, and why."""
    superseded = [letter for letter in plan.letters if letter.outcome == "superseded"]
    for letter in superseded[:NAMED]:
        facts = letter.facts
        which = output.printable(f"{letter.key}  {facts.resource_id or '-'}  request {facts.id}")
        say(f"{which} would be superseded by {letter.why}")
    if len(superseded) > NAMED:
        say(f"and {len(superseded) - NAMED} more would be superseded: see --dry-run")
    for outcome, forecast in FORECASTS.items():
        if outcome in plan.wish.staying:
            staying = Counter(each.why for each in plan.letters if each.outcome == outcome and each.why)
            for problem, count in staying.most_common(TOLD_REASONS):
                say(f"{letters(count)} {forecast.words}: {problem}")
    if plan.refusal:
        say(f"{plan.refusal}. Nothing was replayed; --force replays them all the same")


def _outcomes(run: Run) -> Iterable[str]:
    """What became of each letter, or of groups of them where there are many."""
    if len(run.outcomes) <= NAMED:
        for key, record in run.outcomes.items():
            yield f"{key}  {record['id']}  {record.get('resourceId') or '-'}  {_became(record)}"
    else:
        for became, count in Counter(map(_became, run.outcomes.values())).most_common():
            yield f"{count} {became}"
    if run.missing and run.outcomes:
        yield f"{run.missing} not known yet"


def _became(record: dict[str, Any]) -> str:
    if record["status"] == "registered":
        return "registered"
    why = why_unregistered(record)
    return why if record["status"] == "superseded" else f"{record['status']}: {why}"
