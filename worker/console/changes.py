"""What changes something: pause and resume, and runs of a replay or a discard. By POST alone, and with a
reason."""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from aiohttp import web

from worker.broker.status import publish_order, whoami
from worker.console.forms import LETTER_FILTERS, Change, asked_for, form_of, patch_of, rate_of, why_of
from worker.console.pages import Pages
from worker.console.rendering import SESSION, see, wants_json
from worker.console.runs import ConsoleRun
from worker.console.sources import ANSWER, Sources, refreshed
from worker.contract.selection import Selection
from worker.contract.status import Order, OrderKind
from worker.dead_letters.patch import Patches
from worker.dead_letters.plan import Plan
from worker.dead_letters.view import view
from worker.errors import UsageError

PLAN_PATIENCE = 1.5  # seconds; a plan that takes longer is shown while it is made
PICKED = "-picked"
ACTIONS = frozenset({"replay", "discard", "correct", f"replay{PICKED}", f"discard{PICKED}"})


class Changes:
    """The handlers."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._sources = sources
        self._pages = pages

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (
            web.post("/pause", partial(self.order, "pause")),
            web.post("/resume", partial(self.order, "resume")),
            web.post("/runs", self.plan),
            web.post("/runs/{number}/start", self.start),
            web.post("/runs/{number}/cancel", self.cancel),
        )

    async def order(self, order: OrderKind, request: web.Request) -> web.Response:
        """Order all workers to pause, or to go on."""
        why = why_of(await form_of(request))
        await publish_order(self._sources.settings, Order.now(order, why, by=_by(request)))
        self._sources.expire()
        await refreshed(ANSWER if wants_json(request) else PLAN_PATIENCE, self._sources.state)
        if wants_json(request):
            return self._pages.answer(request, "overview", self._sources.state.value.document())
        return see("/")

    async def plan(self, request: web.Request) -> web.Response:
        """Make a plan for the letters of the form: those picked, or all that its page showed."""
        form = await form_of(request)
        do, letter, letters = form.get("do", ""), form.get("letter", ""), self._sources.letters
        if do not in ACTIONS:
            raise UsageError(f"do must be one of {', '.join(sorted(ACTIONS))}")
        patch, changes = dict[str, Any](), list[Change]()
        if do.endswith(PICKED):
            keys = form.getall("pick", [])
        elif letter:
            keys = [letter]
        else:
            await refreshed(ANSWER, letters.rows)
            selection, _ = asked_for(form, *LETTER_FILTERS)
            keys = letters.shown(selection, form.get("version", ""))
        if do == "correct":
            found = await letters.find(letter) if letter else None
            if letter and found is None:
                raise UsageError("The letter is not there any more.")
            patch, changes = patch_of(form, None if found is None else view(found, reveal=False))
        if not keys:
            raise UsageError("No dead letter was selected, or none matches any more.")
        plan = Plan(
            "discard" if do.startswith("discard") else "replay",
            Selection(id=frozenset(keys)),
            Patches(patch),
            same_for_all="same_for_all" in form,
        )
        run = ConsoleRun(self._sources.settings, plan, len(keys), changes)
        self._sources.runs.add(run)
        planning = run.begin("planning", run.look())
        await asyncio.wait({planning}, timeout=ANSWER if wants_json(request) else PLAN_PATIENCE)
        return self._shown(request, run)

    async def start(self, request: web.Request) -> web.Response:
        """Do what was planned."""
        form, run = await form_of(request), self._pages.run_of(request)
        plan, active = run.plan, self._sources.runs.active
        if run.phase != "planned":
            raise UsageError("This was started already, or its plan failed: make a new one.")
        if active is not None:
            raise UsageError(f"Another run is under way ({active.stage}): wait until it ends, or cancel it.")
        if plan.refusal:
            raise UsageError(plan.refusal)
        is_counted = form.get("count", "").replace(",", "").strip() == str(run.count)
        if plan.kind == "discard" and not is_counted:
            raise UsageError(f"Type {run.count}, the count of the letters, to remove them for good.")
        run.by, run.why, rate = _by(request), why_of(form), rate_of(form)
        canary = form.get("canary") == "one"
        task = run.begin("running", run.perform(by=run.by, why=run.why, canary=canary, rate=rate))
        task.add_done_callback(lambda _: self._sources.expire())
        return self._shown(request, run)

    async def cancel(self, request: web.Request) -> web.Response:
        """End a run after what is under way; the letters that are left stay where they are."""
        run = self._pages.run_of(request)
        run.stop()
        return self._shown(request, run)

    def _shown(self, request: web.Request, run: ConsoleRun) -> web.Response:
        if wants_json(request):
            return self._pages.answer(request, "run", run.document())
        return see(f"/runs/{run.number}")


def _by(request: web.Request) -> str:
    return request.get(SESSION) or whoami()
