"""`ott-worker dead-letters discard`."""

import asyncio
import contextlib
import sys

from worker.cli import output
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
from worker.cli.dead_letters.terminal import agreed, letters, record, say
from worker.dead_letters import replay as replaying
from worker.dead_letters.box import DeadLetterBox, Progress, open_box
from worker.dead_letters.plan import Plan
from worker.dead_letters.selection import Selection
from worker.errors import UsageError
from worker.settings import Settings, load_settings


def discard(
    bare_ids: BareIds = None,
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
    selection = select(reason, platform, resource, [*(bare_ids or ()), *(id_ or ())], since, until)
    require_filter(selection, "discard", everything=all_)
    if not yes and not sys.stdin.isatty():
        raise UsageError("discard removes for good and cannot ask here: give --yes")
    settings = load_settings()
    plan = asyncio.run(_count(settings, selection))
    if not plan.matching:
        say("no dead letter matches")
        return 1 if selection.ids else 0
    if not yes and not agreed(f"{letters(plan.matching)} of {plan.total} will be removed for good. Go on?"):
        say("nothing was discarded")
        return 1
    done = asyncio.run(_discard(settings, selection, plan))
    if as_json:
        output.json_line({"discarded": done})
    else:
        output.line(f"{letters(done)} discarded.")
    return 0


async def _count(settings: Settings, selection: Selection) -> Plan:
    async with open_box(settings, say) as box:
        return await _look(box, selection)


async def _look(box: DeadLetterBox, selection: Selection) -> Plan:
    plan = Plan(total=await box.depth())
    async with contextlib.aclosing(box.look(selection)) as found:
        async for letter in found:
            plan.add("discarded", letter)
    return plan


async def _discard(settings: Settings, selection: Selection, plan: Plan) -> int:
    progress = Progress()
    async with open_box(settings, say) as box, box.change("discarding") as has_waited:
        if has_waited:  # somebody else has changed the queue since
            plan = await _look(box, selection)
        with progress_bar("Discarding", plan.matching, progress):
            await replaying.discard(box, selection, plan, progress)
    await record("discarded", progress.done, settings)
    return progress.done
