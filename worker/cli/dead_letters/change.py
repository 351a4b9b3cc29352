"""`ott-worker dead-letters replay` and `discard`: what changes the queue."""

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich import progress
from rich.console import Console

from worker.cli import output
from worker.cli.options import All, Json, Yes, filtered, require_filter
from worker.cli.output import Column, Table, text_of
from worker.cli.terminal import TOLD, Say, agreed, letters, on_end, read_value, some
from worker.contract.settlement import why_unregistered
from worker.dead_letters import patch
from worker.dead_letters.patch import Patches
from worker.dead_letters.plan import Plan, Planned, Wish
from worker.dead_letters.run import BAD, Run
from worker.dead_letters.selection import Selection
from worker.dead_letters.table import read_patches
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.settings import load_settings

SEE_WHY = "ott-worker dead-letters list --by error"
OUTCOMES = {
    "replayed": "replayed",
    "superseded": "superseded by",
    "rejected": "rejected again:",
    "unproven": "needs --force",
    "unfit": "left where it is:",
}
FORECAST = ("letter", "id", "reason", "error", "ottPlatformName", "resourceId")
TOLD_REASONS = 5  # why letters cannot be replayed; --dry-run tells it of each


def _outcome(row: dict[str, Any]) -> str:
    return f"{OUTCOMES[row['outcome']]} {row['why'] or ''}".rstrip()


FORECAST_COLUMNS = (
    Column("LETTER", text_of("letter")),
    Column("REASON", text_of("reason"), rank=3),
    Column("RESOURCE", text_of("resourceId"), rank=2),
    Column("WOULD BE", _outcome, least=32),
    Column("REQUEST", text_of("id"), rank=4),
)


@filtered
def replay(
    selection: Selection,
    all_: All = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Correct a field first; VALUE may be @FILE, or - for standard input.",
        ),
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
    patches = _patches(assignments or (), patch_file)
    if selection.is_everything and patches.names and not all_:
        selection = Selection(ids=patches.names)
    require_filter(selection, "replay", everything=all_)
    say = Say()
    wish = Wish("replay", selection, patches, force, accept_unencrypted, same_for_all)
    run = Run(load_settings(), wish, say)
    plan = asyncio.run(run.plan())
    unknown = patches.names - {name for letter in plan.letters for name in (letter.key, letter.id)}
    if unknown:
        say(f"{patch_file}: {len(unknown)} rows name no dead letter that matches, such as {min(unknown)}")
    elif plan.missing:
        say(f"no dead letter matches {some(plan.missing)}")
    if dry_run:
        return _print_plan(plan, as_json=as_json) or (1 if plan.missing or unknown else 0)
    if not plan.letters:
        say("no dead letter matches")
        return 1 if selection.ids else 0
    _tell_before(plan, say)
    if plan.refusal:
        return 1
    reads_value = any(assignment.endswith("=-") for assignment in assignments or ())
    asks = not yes and (sys.stdin.isatty() or (reads_value and sys.stderr.isatty()))
    if asks and not agreed(f"{_in_words(plan)} Go on?"):
        say("nothing was replayed")
        return 1
    lost = asyncio.run(performed(run, "Replaying", rate=rate, follow=not no_wait))
    return _tell(run, lost, say, as_json=as_json) or (1 if plan.missing or unknown else 0)


def _patches(assignments: Sequence[str], file: str | None) -> Patches:
    patching = patch.parse(assignments, read_value)
    if file is None:
        return Patches(patching)
    if patching:
        raise UsageError("--patch and --set cannot be combined: change the cells of the file")
    return read_patches(file)


def _tell(run: Run, lost: BrokerUnreachable | None, say: Say, *, as_json: bool) -> int:
    """Say what was done and what is left to do; the exit code."""
    plan, records = run.planned, list(run.outcomes.values())
    assert plan is not None
    if as_json:
        for each in records:
            output.json_line(each)
        output.json_line({"replayed": run.done, "left": run.left, "unfit": plan.counts["unfit"]})
    else:
        hint = " ott-worker journal shows what came of them." if run.done and not run.is_followed else ""
        output.line(f"{letters(run.done)} replayed, {run.left} left.{hint}")
        for line in _told(run):
            output.line(line)
    told_absent(run, say)
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.is_stopping:
        rest = "the remaining dead letters were not touched" if run.left else "see ott-worker journal"
        raise Interrupted(f"stopped: {rest}")
    died_again = sum(run.statuses[status] for status in BAD)
    if died_again:
        say(f"{letters(died_again)} came back: {SEE_WHY}")
    elif run.left:
        say(f"{letters(run.left)} left: {SEE_WHY}")
    return 1 if run.left or run.gone or run.changed or died_again else 0


def _print_plan(plan: Plan, *, as_json: bool) -> int:
    rows = [_forecast(letter) for letter in plan.letters]
    if as_json:
        for row in rows:
            output.json_line(row)
    else:
        if rows:
            Table(FORECAST_COLUMNS, rows, output.width()).print()
        output.line(_in_words(plan))
    output.flush()
    return 1 if plan.refusal or len(plan.going) < len(plan.letters) else 0


def _forecast(letter: Planned) -> dict[str, Any]:
    facts = letter.facts.document()
    return {
        **{name: facts[name] for name in FORECAST},
        "outcome": letter.outcome,
        "why": letter.why or None,
    }


def _tell_before(plan: Plan, say: Say) -> None:
    """Say which letters would be superseded, by what, which stay, and why."""
    told_superseded(plan, say)
    for outcome, what in (("unfit", "cannot be replayed"), ("rejected", "would be rejected again")):
        staying = Counter(letter.why for letter in plan.letters if letter.outcome == outcome)
        for problem, count in staying.most_common(TOLD_REASONS) if outcome in plan.wish.staying else ():
            say(f"{letters(count)} {what}: {problem}")
    if plan.refusal:
        say(f"{plan.refusal}. Nothing was replayed; --force replays them all the same")


def _told(run: Run) -> Iterable[str]:
    """What became of each letter, or of groups of them where there are many."""
    if len(run.outcomes) <= TOLD:
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


def _in_words(plan: Plan) -> str:
    counts = plan.counts
    parts = [f"{len(plan.letters)} of {letters(plan.total)} match."]
    if counts["superseded"]:
        parts.append(f"{counts['superseded']} will be answered superseded.")
    if counts["rejected"]:
        stay = "" if plan.wish.force else ", and stay"
        parts.append(f"{counts['rejected']} would be rejected again as they are{stay}.")
    if counts["unfit"]:
        parts.append(f"{counts['unfit']} cannot be replayed.")
    if counts["unproven"]:
        parts.append(f"{counts['unproven']} need --force.")
    return " ".join(parts)


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
    plan = asyncio.run(run.plan())
    if not plan.letters:
        say("no dead letter matches")
        return 1 if selection.ids else 0
    if plan.missing:
        say(f"no dead letter matches {some(plan.missing)}")
    count = f"{len(plan.letters)} of {letters(plan.total)}"
    if not yes and not agreed(f"{count} will be removed for good. Go on?"):
        say("nothing was discarded")
        return 1
    lost = asyncio.run(performed(run, "Discarding", rate=None, follow=False))
    left = max(0, plan.total - run.done - len(run.gone))
    if as_json:
        output.json_line({"discarded": run.done})
    else:
        output.line(f"{letters(run.done)} discarded.")
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.is_stopping:
        raise Interrupted("stopped: the remaining dead letters were not touched")
    told_absent(run, say)
    if left:
        say(f"{letters(left)} left: {SEE_WHY}")
    return 1 if plan.missing or run.gone or run.changed else 0


def told_superseded(plan: Plan, say: Say) -> None:
    """Say which replays would be superseded, and by what."""
    superseded = [letter for letter in plan.letters if letter.outcome == "superseded"]
    for letter in superseded[:TOLD]:
        say(f"{named(letter)} would be superseded by {letter.why}")
    if len(superseded) > TOLD:
        say(f"and {len(superseded) - TOLD} more would be superseded: see --dry-run")


def named(letter: Planned) -> str:
    """The letter, its resource, and its request."""
    return output.printable(f"{letter.key}  {letter.facts.resource_id or '-'}  request {letter.facts.id}")


async def performed(run: Run, title: str, *, rate: float | None, follow: bool) -> BrokerUnreachable | None:
    """Perform a run with a progress bar on standard error, where that is a terminal. Signals stop it.
    What cut it short."""
    on_end(run.stop)
    try:
        with _progress_bar(title, run):
            await run.perform(rate=rate, follow=follow)
    except BrokerUnreachable as error:
        return error
    return None


@contextlib.contextmanager
def _progress_bar(title: str, run: Run) -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal or run.planned is None:
        yield
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=len(run.planned.going))
        run.progressed = lambda: bar.update(task, completed=run.done)
        yield


def told_absent(run: Run, say: Say) -> None:
    """Say which letters were not there as they were planned."""
    if run.gone:
        say(f"{letters(len(run.gone))} had gone meanwhile: {some(run.gone)}")
    if run.changed:
        say(f"{letters(len(run.changed))} had changed meanwhile, and stay: {some(run.changed)}")
