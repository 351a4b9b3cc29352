"""`ott-worker dead-letters replay`."""

import asyncio
import signal
import sys
from typing import Annotated

import typer

from worker.cli import output
from worker.cli.dead_letters.options import (
    All,
    Ids,
    Json,
    Platforms,
    Reasons,
    Resources,
    Since,
    Until,
    Yes,
    require_filter,
    select,
)
from worker.cli.dead_letters.terminal import agreed, letters, progress_bar, read_value, say
from worker.cli.table import Column, Table
from worker.dead_letters import patch
from worker.dead_letters import replay as replaying
from worker.dead_letters.box import open_box
from worker.dead_letters.patch import Patch
from worker.dead_letters.plan import Forecast, Plan, Planner
from worker.dead_letters.selection import Selection
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.events import EventListener
from worker.settings import Settings, load_settings

OUTCOMES = {
    "replayed": "replayed",
    "superseded": "superseded by",
    "rejected": "rejected again:",
    "unproven": "needs --force",
    "unfit": "left where it is:",
}
FORECAST_COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("REASON", lambda row: row["reason"], rank=3),
    Column("RESOURCE", lambda row: row["resourceId"] or "-", rank=2, shrink_to=8),
    Column("WOULD BE", lambda row: _outcome(row["outcome"], row["why"]), rank=1, shrink_to=16),
)


def _outcome(outcome: str, why: str | None) -> str:
    return f"{OUTCOMES[outcome]} {why or ''}".rstrip()


def replay(
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    all_: All = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Patch a field first; VALUE may be @FILE, or - for standard input.",
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Letters a second, at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if that overwrites a newer registration.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Send dead letters through the worker again, oldest first.

    One that a newer registration of its resource has overtaken is answered "superseded" instead.

    Example: ott-worker dead-letters replay --reason rejected --set pageAccessToken=@token.txt
    """
    if rate is not None and not 0 < rate < 1e6:
        raise UsageError("--rate must be a number above 0")
    selection = select(reason, platform, resource, id_, since, until)
    require_filter(selection, "replay", everything=all_)
    patching = patch.parse(assignments or (), read_value)
    settings = load_settings()
    planner = Planner(settings, selection, patching, force=force)
    with Table(FORECAST_COLUMNS) as table:
        plan = asyncio.run(_plan(settings, planner, table if dry_run else None))
        if dry_run:
            _print_plan(table, plan, as_json=as_json)
            return 1 if plan.unfit or plan.rejected or plan.unproven else 0
    if plan.unproven:
        say(
            f"{letters(plan.unproven)} could overwrite a newer registration, for the journal does not reach "
            "back to them. Nothing was replayed: narrow the filter (see --dry-run), or give --force"
        )
        return 1
    if not plan.matching:
        say("no dead letter matches")
        return 1 if selection.ids else 0
    mended_by_stdin = any(assignment.endswith("=-") for assignment in assignments or ())
    asks = not yes and (sys.stdin.isatty() or (mended_by_stdin and sys.stderr.isatty()))
    if asks and not agreed(f"{_in_words(plan)} Go on?"):
        say("nothing was replayed")
        return 1
    return asyncio.run(_replay(settings, selection, patching, plan, force=force, rate=rate, as_json=as_json))


async def _plan(settings: Settings, planner: Planner, table: Table | None) -> Plan:
    def tell(forecast: Forecast) -> None:
        if table is not None:
            table.add({**forecast.letter.summary(), "outcome": forecast.outcome, "why": forecast.why or None})

    async with open_box(settings) as box:
        return await planner.make(box, tell)


def _print_plan(table: Table, plan: Plan, *, as_json: bool) -> None:
    if as_json:
        table.print_json()
    else:
        if table.rows:
            table.print(output.width())
        output.line(_in_words(plan))
    output.flush()


async def _replay(
    settings: Settings,
    selection: Selection,
    patching: Patch,
    plan: Plan,
    *,
    force: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    run = replaying.Replay(settings, selection, patching, _Trouble(), force=force, rate=rate)
    progress = replaying.Progress()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop.set)
    lost = None
    try:
        async with open_box(settings) as box:
            with progress_bar("Replaying", plan.matching, progress):
                await run.run(box, plan, progress)
    except BrokerUnreachable as error:
        lost = error
    left = max(0, plan.matching - progress.done)
    if as_json:
        output.json_line({"replayed": progress.done, "left": left, "unfit": progress.unfit})
    else:
        journal = " ott-worker journal shows what came of them." if progress.done and settings.journal else ""
        output.line(f"{letters(progress.done)} replayed, {left} left.{journal}")
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.stop.is_set():
        raise Interrupted("stopped: the letters that are left lie where they were")
    return 1 if left or plan.rejected else 0


class _Trouble(EventListener):
    """Says once what holds a replay up."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def publish_turned_down(self, queue: str, why: str) -> None:
        self._say(f"{queue} does not take the message ({why}): trying again; Ctrl-C stops")

    def publisher_lost(self, why: str) -> None:
        self._say(f"{why}: trying again; Ctrl-C stops")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)


def _in_words(plan: Plan) -> str:
    parts = [f"{letters(plan.matching)} of {plan.total} match."]
    if plan.superseded:
        parts.append(f"{plan.superseded} will be answered superseded.")
    if plan.rejected:
        parts.append(f"{plan.rejected} will be rejected again as they are.")
    if plan.unfit:
        parts.append(f"{plan.unfit} cannot be replayed as mended.")
    if plan.unproven:
        parts.append(f"{plan.unproven} need --force.")
    return " ".join(parts)
