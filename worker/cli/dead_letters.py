"""`ott-worker dead-letters`: list, show, replay, discard."""

import asyncio
import contextlib
import getpass
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.cli import output
from worker.cli.table import Column, Table
from worker.contract.registration import PLATFORMS, SECRET_FIELDS
from worker.contract.words import Reason
from worker.dead_letters import patch
from worker.dead_letters import replay as replaying
from worker.dead_letters.box import open_box
from worker.dead_letters.patch import Patch
from worker.dead_letters.plan import Plan, Planner, Prospect
from worker.dead_letters.selection import Selection, moment
from worker.dead_letters.view import as_text, view
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.events import EventListener
from worker.settings import Settings, load_settings

app = typer.Typer(
    no_args_is_help=True,
    help="Look at requests that were not registered; replay or discard them.\n\n"
    "Example: ott-worker dead-letters list --since 2h",
)

Reasons = Annotated[
    list[str] | None,
    typer.Option(
        "--reason",
        help="invalid, rejected, exhausted, forbidden, oversize, or the broker's delivery_limit, expired.",
    ),
]
Platforms = Annotated[list[str] | None, typer.Option("--platform", help="messenger or line.")]
Resources = Annotated[list[str] | None, typer.Option("--resource", help="pageId or channelId.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="The request's id.")]
Since = Annotated[
    str | None, typer.Option("--since", help="Died at this time (UTC) or later; or a while ago: 2h, 3d.")
]
Until = Annotated[str | None, typer.Option("--until", help="Died at this time (UTC) or before.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("REASON", lambda row: row["reason"], rank=1, shrink_to=8),
    Column(
        "DIED (UTC)",
        lambda row: _time(row["deadAt"]),
        rank=4,
        shrink_to=11,
        short=lambda row: _time(row["deadAt"])[5:16],
    ),
    Column("PLATFORM", lambda row: row["ottPlatformName"] or "-", rank=5),
    Column("RESOURCE", lambda row: row["resourceId"] or "-", rank=2, shrink_to=8),
    Column("TRIES", lambda row: str(row["attempts"]), rank=6),
    Column("ERROR", lambda row: row["error"] or "-", rank=7, shrink_to=12),
)
# Those of contract §5, the broker's own, and what a letter is called that names none.
REASONS = frozenset({*get_args(Reason), "delivery_limit", "expired", "maxlen", "unknown"})
FATES = {
    "replayed": "replayed",
    "superseded": "superseded by",
    "rejected": "rejected again:",
    "unproven": "needs --force",
    "unfit": "left where it is:",
}
PROSPECT_COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("REASON", lambda row: row["reason"], rank=3),
    Column("RESOURCE", lambda row: row["resourceId"] or "-", rank=2, shrink_to=8),
    Column("WOULD BE", lambda row: f"{FATES[row['fate']]} {row['why'] or ''}".rstrip(), rank=1, shrink_to=16),
)


def _time(text: str | None) -> str:
    return "-" if text is None else text[:19].replace("T", " ")


def _selection(
    reasons: list[str] | None,
    platforms: list[str] | None,
    resources: list[str] | None,
    ids: list[str] | None,
    since: str | None,
    until: str | None,
) -> Selection:
    if not REASONS.issuperset(reasons or ()):
        raise UsageError(f"--reason must be one of {', '.join(sorted(REASONS))}")
    if not PLATFORMS.keys() >= set(platforms or ()):
        raise UsageError(f"--platform must be {' or '.join(PLATFORMS)}")
    return Selection(
        reasons=frozenset(reasons or ()),
        platforms=frozenset(platforms or ()),
        resources=frozenset(resources or ()),
        ids=frozenset(ids or ()),
        since=moment(since, "--since"),
        until=moment(until, "--until"),
    )


@app.command("list")
def list_(
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first. Changes nothing.

    Example: ott-worker dead-letters list --reason exhausted --since 2h
    """
    selection = _selection(reason, platform, resource, id_, since, until)
    with Table(COLUMNS) as table:
        total, reasons = asyncio.run(_list(load_settings(), selection, table))
        if as_json:
            table.print_json()
        elif table.rows:
            table.print(output.width())
            counts = ", ".join(f"{count} {name}" for name, count in reasons.most_common())
            output.line(f"{_letters(table.rows)}: {counts}")
        else:
            output.line("No dead letter matches." if total else "No dead letters.")
        output.flush()


async def _list(settings: Settings, selection: Selection, table: Table) -> tuple[int, Counter[str]]:
    reasons: Counter[str] = Counter()
    async with open_box(settings) as box:
        total = await box.depth()
        async with contextlib.aclosing(box.look(selection)) as letters:
            async for letter in letters:
                table.add(letter.summary())
                reasons[letter.reason] += 1
    return total, reasons


@app.command()
def show(
    request_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print the values of secret fields.")] = False,
    as_json: Json = False,
) -> int:
    """Show dead letters whole: properties, headers, body. Secret values are masked. Changes nothing.

    Example: ott-worker dead-letters show 6f1c0a52d0b14a5e
    """
    selection = _selection(reason, platform, resource, [*(request_ids or ()), *(id_ or ())], since, until)
    if selection.is_everything:
        raise UsageError("show wants the id of a dead letter, or a filter: see ott-worker dead-letters list")
    documents = asyncio.run(_show(load_settings(), selection, reveal=reveal))
    if not documents:
        typer.echo("ott-worker: no dead letter matches", err=True)
        return 1
    for number, document in enumerate(documents):
        if as_json:
            output.json_line(document)
            continue
        if number:
            output.write("")
        for line in as_text(document):
            output.line(line)
    output.flush()
    return 0


async def _show(settings: Settings, selection: Selection, *, reveal: bool) -> list[dict[str, Any]]:
    async with open_box(settings) as box, contextlib.aclosing(box.look(selection)) as letters:
        return [view(letter, reveal=reveal) async for letter in letters]


@app.command()
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
    selection = _selection(reason, platform, resource, id_, since, until)
    _want_filter(selection, "replay", everything=all_)
    mending = patch.parse(assignments or (), _read_value)
    settings = load_settings()
    planner = Planner(settings, selection, mending, force=force)
    with Table(PROSPECT_COLUMNS) as table:
        plan = asyncio.run(_plan(settings, planner, table if dry_run else None))
        if dry_run:
            _print_plan(table, plan, as_json=as_json)
            return 1 if plan.unfit or plan.rejected or plan.unproven else 0
    if plan.unproven:
        _say(
            f"{_letters(plan.unproven)} could overwrite a newer registration, for the journal does not reach "
            "back to them. Nothing was replayed: narrow the filter (see --dry-run), or give --force"
        )
        return 1
    if not plan.matching:
        _say("no dead letter matches")
        return 1 if selection.ids else 0
    mended_by_stdin = any(assignment.endswith("=-") for assignment in assignments or ())
    asks = not yes and (sys.stdin.isatty() or (mended_by_stdin and sys.stderr.isatty()))
    if asks and not _agreed(f"{_in_words(plan)} Go on?"):
        _say("nothing was replayed")
        return 1
    return asyncio.run(_replay(settings, selection, mending, plan, force=force, rate=rate, as_json=as_json))


async def _plan(settings: Settings, planner: Planner, table: Table | None) -> Plan:
    def tell(prospect: Prospect) -> None:
        if table is not None:
            table.add({**prospect.letter.summary(), "fate": prospect.fate, "why": prospect.why or None})

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
    mending: Patch,
    plan: Plan,
    *,
    force: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    run = replaying.Replay(settings, selection, mending, _Trouble(), force=force, rate=rate)
    progress = replaying.Progress()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop.set)
    lost = None
    try:
        async with open_box(settings) as box:
            with _bar("Replaying", plan.matching, progress):
                await run.run(box, plan, progress)
    except BrokerUnreachable as error:
        lost = error
    left = max(0, plan.matching - progress.done)
    if as_json:
        output.json_line({"replayed": progress.done, "left": left, "unfit": progress.unfit})
    else:
        journal = " ott-worker journal shows what came of them." if progress.done and settings.journal else ""
        output.line(f"{_letters(progress.done)} replayed, {left} left.{journal}")
    if lost is not None:
        raise BrokerUnreachable(f"{lost}: run it again for the letters that are left")
    if run.stop.is_set():
        raise Interrupted("stopped: the letters that are left lie where they were")
    return 1 if left or plan.rejected else 0


@app.command()
def discard(
    reason: Reasons = None,
    platform: Platforms = None,
    resource: Resources = None,
    id_: Ids = None,
    since: Since = None,
    until: Until = None,
    all_: All = False,
    yes: Yes = False,
    as_json: Json = False,
) -> int:
    """Remove dead letters for good.

    Example: ott-worker dead-letters discard --reason invalid --until 30d --yes
    """
    selection = _selection(reason, platform, resource, id_, since, until)
    _want_filter(selection, "discard", everything=all_)
    if not yes and not sys.stdin.isatty():
        raise UsageError("discard removes for good and cannot ask here: give --yes")
    settings = load_settings()
    plan = asyncio.run(_count(settings, selection))
    if not plan.matching:
        _say("no dead letter matches")
        return 1 if selection.ids else 0
    if not yes and not _agreed(f"{_letters(plan.matching)} of {plan.total} will be removed for good. Go on?"):
        _say("nothing was discarded")
        return 1
    done = asyncio.run(_discard(settings, selection, plan))
    if as_json:
        output.json_line({"discarded": done})
    else:
        output.line(f"{_letters(done)} discarded.")
    return 0


async def _count(settings: Settings, selection: Selection) -> Plan:
    async with open_box(settings) as box:
        plan = Plan(total=await box.depth())
        async with contextlib.aclosing(box.look(selection)) as letters:
            async for _ in letters:
                plan.add("discarded")
        return plan


async def _discard(settings: Settings, selection: Selection, plan: Plan) -> int:
    progress = replaying.Progress()
    async with open_box(settings) as box:
        with _bar("Discarding", plan.matching, progress):
            await replaying.discard(box, selection, plan, progress)
    return progress.done


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
            _say(text)


@contextlib.contextmanager
def _bar(title: str, total: int, progress: replaying.Progress) -> Iterator[None]:
    """A progress bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        progress.tell = lambda: bar.update(task, completed=progress.done + progress.unfit)
        yield


def _read_value(field: str) -> str:
    """A value from standard input; a terminal is told what is wanted, and does not show a secret."""
    if not sys.stdin.isatty():
        return sys.stdin.read()
    prompt = f"{field}: "
    if field in SECRET_FIELDS:
        return getpass.getpass(prompt, sys.stderr)
    typer.echo(prompt, nl=False, err=True)
    return sys.stdin.readline()


def _agreed(question: str) -> bool:
    """Ask on the terminal, which need not be what standard input and output are."""
    typer.echo(f"{question} [y/N]: ", nl=False, err=True)
    try:
        with contextlib.nullcontext(sys.stdin) if sys.stdin.isatty() else open("/dev/tty") as terminal:
            answer = terminal.readline()
    except OSError:
        typer.echo(err=True)
        raise UsageError("there is no terminal to ask on: give --yes") from None
    if not answer:
        raise typer.Abort
    return answer.strip().lower() in ("y", "yes")


def _want_filter(selection: Selection, command: str, *, everything: bool) -> None:
    if selection.is_everything and not everything:
        raise UsageError(f"{command} wants a filter, or --all for every dead letter")


def _in_words(plan: Plan) -> str:
    parts = [f"{_letters(plan.matching)} of {plan.total} match."]
    if plan.superseded:
        parts.append(f"{plan.superseded} will be answered superseded.")
    if plan.rejected:
        parts.append(f"{plan.rejected} will be rejected again as they are.")
    if plan.unfit:
        parts.append(f"{plan.unfit} cannot be replayed as mended.")
    if plan.unproven:
        parts.append(f"{plan.unproven} need --force.")
    return " ".join(parts)


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"


def _say(text: str) -> None:
    typer.echo(f"ott-worker: {text}", err=True)
