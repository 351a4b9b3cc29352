"""`ott-worker dead-letters replay`."""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from worker.cli import output
from worker.cli.dead_letters.listing import ID, resource_of
from worker.cli.dead_letters.options import (
    All,
    BareIds,
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
from worker.cli.dead_letters.progress_bar import progress_bar
from worker.cli.dead_letters.terminal import agreed, letters, read_value, record, say
from worker.cli.table import Column, TextTable
from worker.dead_letters import patch
from worker.dead_letters import replay as replaying
from worker.dead_letters.box import Progress, open_box
from worker.dead_letters.outcomes import OutcomeFollower
from worker.dead_letters.patch import Patch, Patches, SamePatch
from worker.dead_letters.plan import Forecast, Plan, Planner
from worker.dead_letters.selection import Selection
from worker.dead_letters.table import TablePatches, read_patches
from worker.errors import BrokerUnreachable, Interrupted, TopologyError, UsageError
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
    ID,
    Column("REASON", lambda row: row["reason"], rank=3, shrink_to=10),
    Column("RESOURCE", resource_of, rank=2, shrink_to=13, middle=True),
    Column("WOULD BE", lambda row: _outcome(row["outcome"], row["why"]), rank=1, shrink_to=16),
)
TOLD_ONE_BY_ONE = 20  # letters; more are told in groups
TOLD_REASONS = 5  # why letters cannot be replayed; --dry-run tells it of each


def _outcome(outcome: str, why: str | None) -> str:
    return f"{OUTCOMES[outcome]} {why or ''}".rstrip()


@dataclass(frozen=True, slots=True)
class _Ways:
    """How the letters are replayed."""

    force: bool
    accept_unencrypted: bool
    rate: float | None
    wait: bool
    as_json: bool


def replay(
    bare_ids: BareIds = None,
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
    patch_file: Annotated[
        str | None,
        typer.Option(
            "--patch", metavar="FILE", help="Patch each letter by its row in a file that export wrote."
        ),
    ] = None,
    same_for_all: Annotated[
        bool, typer.Option("--same-for-all", help="Let --set give several pages or channels the same value.")
    ] = False,
    rate: Annotated[float | None, typer.Option(help="Letters a second, at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would happen.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replay even if that overwrites a newer registration.")
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

    ott-worker dead-letters replay 6f1c0a52d0b14a5e --set pageAccessToken=@token.txt

    ott-worker dead-letters replay --patch letters.csv
    """
    if rate is not None and not 0 < rate < 1e6:
        raise UsageError("--rate must be a number above 0")
    selection = select(reason, platform, resource, [*(bare_ids or ()), *(id_ or ())], since, until)
    patching = patch.parse(assignments or (), read_value)
    patches: Patches = SamePatch(patching)
    if patch_file is not None:
        patches = _read_patches(patch_file, patching)
        if selection.is_everything and not all_:
            selection = Selection(ids=frozenset(patches.records))
    require_filter(selection, "replay", everything=all_)
    settings = load_settings()
    ways = _Ways(force, accept_unencrypted, rate, not no_wait and settings.journal, as_json)
    with TextTable(FORECAST_COLUMNS) as table:
        plan = asyncio.run(_plan(settings, selection, patches, ways, table if dry_run else None))
        if not same_for_all:
            _refuse_one_for_all(patching, plan)
        missing = patches.records.keys() - plan.ids if isinstance(patches, TablePatches) else set()
        if missing:
            say(f"{patch_file}: {len(missing)} rows name no dead letter that matches, such as {min(missing)}")
        if dry_run:
            _print_plan(table, plan, as_json=as_json)
            return 1 if plan.unfit or plan.rejected or plan.unproven or missing else 0
    if plan.unproven:
        say(
            f"{letters(plan.unproven)} could overwrite a newer registration, for the journal does not reach "
            "back to them. Nothing was replayed: narrow the filter (see --dry-run), or give --force"
        )
        return 1
    if not plan.matching:
        say("no dead letter matches")
        return 1 if selection.ids else 0
    _tell_unfit(plan)
    patched_by_stdin = any(assignment.endswith("=-") for assignment in assignments or ())
    asks = not yes and (sys.stdin.isatty() or (patched_by_stdin and sys.stderr.isatty()))
    if asks and not agreed(f"{_in_words(plan)} Go on?"):
        say("nothing was replayed")
        return 1
    code = asyncio.run(_replay(settings, selection, patches, plan, ways))
    return code or (1 if missing else 0)


def _read_patches(path: str, patching: Patch) -> TablePatches:
    if patching:
        raise UsageError("--patch and --set cannot be combined: change the cells of the file")
    return read_patches(path)


def _refuse_one_for_all(patching: Patch, plan: Plan) -> None:
    fields = patching.of_one_resource
    if fields and len(plan.resources) > 1:
        raise UsageError(
            f"--set {fields[0]} would give {len(plan.resources)} pages or channels the same value: narrow "
            "the filter to one of them, or give --same-for-all if that is meant"
        )


def _tell_unfit(plan: Plan) -> None:
    for why, count in plan.unfit_because.most_common(TOLD_REASONS):
        say(f"{letters(count)} cannot be replayed: {why}")


def _planner(settings: Settings, selection: Selection, patches: Patches, ways: _Ways) -> Planner:
    return Planner(
        settings,
        selection,
        patches,
        force=ways.force,
        accept_unencrypted=ways.accept_unencrypted,
    )


async def _plan(
    settings: Settings, selection: Selection, patches: Patches, ways: _Ways, table: TextTable | None
) -> Plan:
    def tell(forecast: Forecast) -> None:
        if table is not None:
            table.add({**forecast.letter.summary(), "outcome": forecast.outcome, "why": forecast.why or None})

    planner = _planner(settings, selection, patches, ways)
    async with open_box(settings, say) as box:
        return await planner.make(box, tell)


def _print_plan(table: TextTable, plan: Plan, *, as_json: bool) -> None:
    if as_json:
        table.print_json()
    else:
        if table.rows:
            table.print(output.width())
        output.line(_in_words(plan))
    output.flush()


async def _replay(settings: Settings, selection: Selection, patches: Patches, plan: Plan, ways: _Ways) -> int:
    progress = Progress()
    async with contextlib.AsyncExitStack() as stack:
        follower = await _follow(settings, stack) if ways.wait else None
        run = replaying.Replay(
            settings,
            selection,
            patches,
            _Trouble(),
            force=ways.force,
            accept_unencrypted=ways.accept_unencrypted,
            rate=ways.rate,
            follower=follower,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, run.stop.set)
        planner = _planner(settings, selection, patches, ways)
        plan, lost = await _publish(settings, run, planner, plan, progress)
        left = max(0, plan.matching - progress.done)
        if not ways.as_json:
            output.line(
                f"{letters(progress.done)} replayed, {left} left.{_hint(progress, settings, follower)}"
            )
            output.flush()
        all_known = True
        if follower is not None and lost is None:
            all_known = await follower.wait(run.stop, say)
        records = follower.records if follower is not None else []
        missing = follower.missing if follower is not None else 0
    _tell_outcomes(records, missing, as_json=ways.as_json)
    if ways.as_json:
        output.json_line({"replayed": progress.done, "left": left, "unfit": progress.unfit})
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.stop.is_set():
        rest = (
            "the letters that are left lie where they were" if left else "see ott-worker journal for the rest"
        )
        raise Interrupted(f"stopped: {rest}")
    if not all_known:
        say(f"no worker takes requests: {letters(missing)} wait in the queue until one is started")
    failed = any(each["status"] in ("rejected", "failed") for each in records)
    return 1 if left or failed or (plan.rejected and not records) else 0


async def _publish(
    settings: Settings, run: replaying.Replay, planner: Planner, plan: Plan, progress: Progress
) -> tuple[Plan, BrokerUnreachable | None]:
    """Publish what the plan counted; the plan as it was in the end, and what cut it short."""
    try:
        async with open_box(settings, say) as box, box.change("replaying") as has_waited:
            if has_waited:  # somebody else has changed the queue since
                plan = await planner.make(box, lambda _: None)
            with progress_bar("Replaying", plan.matching, progress):
                await run.run(box, plan, progress)
    except BrokerUnreachable as error:
        return plan, error
    await record("replayed", progress.done, settings)
    return plan, None


async def _follow(settings: Settings, stack: contextlib.AsyncExitStack) -> OutcomeFollower | None:
    """Follow the outcomes, where there is a journal to read them from."""
    try:
        return await stack.enter_async_context(OutcomeFollower(settings))
    except TopologyError as error:
        say(f"{error}. What becomes of the letters is not followed")
        return None


def _hint(progress: Progress, settings: Settings, follower: OutcomeFollower | None) -> str:
    is_told_elsewhere = progress.done and settings.journal and follower is None
    return " ott-worker journal shows what came of them." if is_told_elsewhere else ""


def _tell_outcomes(records: list[dict[str, Any]], missing: int, *, as_json: bool) -> None:
    """Each letter, or groups of them where there are many."""
    if as_json:
        for each in records:
            output.json_line(each)
        return
    if len(records) <= TOLD_ONE_BY_ONE:
        for each in records:
            output.line(f"{each['id']}  {each.get('resourceId') or '-'}  {_became(each)}")
    else:
        for became, count in Counter(map(_became, records)).most_common():
            output.line(f"{count} {became}")
    if missing and records:
        output.line(f"{missing} not known yet")


def _became(settled: dict[str, Any]) -> str:
    status = settled["status"]
    if status == "superseded":
        return f"superseded by {settled.get('supersededBy')}" if settled.get("supersededBy") else status
    if status == "registered":
        return str(status)
    why = "; ".join(settled.get("errors") or ()) or f"error {settled.get('errorcode')}"
    return f"{status} ({settled.get('reason')}): {why}"


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
        parts.append(f"{plan.unfit} cannot be replayed.")
    if plan.unproven:
        parts.append(f"{plan.unproven} need --force.")
    return " ".join(parts)
