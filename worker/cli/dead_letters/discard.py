"""`ott-worker dead-letters discard`."""

import asyncio
import sys

from worker.cli import output
from worker.cli.dead_letters.options import All, Json, Yes, filtered, require_filter
from worker.cli.dead_letters.terminal import Say, agreed, letters, performed, told_absent
from worker.dead_letters.plan import Wish
from worker.dead_letters.run import Run
from worker.dead_letters.selection import Selection
from worker.errors import BrokerUnreachable, Interrupted, UsageError
from worker.settings import load_settings


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
    count = letters(len(plan.letters))
    if not yes and not agreed(f"{count} of {plan.total} will be removed for good. Go on?"):
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
        say(f"{letters(left)} left: ott-worker dead-letters list --by error")
    return 1 if plan.missing or run.gone or run.changed else 0
