"""The pages: each is a document, rendered by its template or as JSON (contract §11). Changes are POST
requests with a reason: pause and resume, and runs of a replay or discard."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from worker.broker.journal import JournalPage
from worker.broker.situation import Condition, State, judge
from worker.broker.status import publish_order, whoami
from worker.console.forms import (
    JOURNAL_FILTERS,
    LETTER_FILTERS,
    Change,
    asked_for,
    form_of,
    patch_of,
    rate_of,
    why_of,
)
from worker.console.rendering import PAGES, SESSION, Page, Renderer, wants_json
from worker.console.runs import ConsoleRun
from worker.console.sources import ANSWER, Cached, Sources
from worker.contract.selection import AmbiguousId, Selection
from worker.contract.settlement import JournalRecord
from worker.contract.status import Order, OrderKind
from worker.contract.timestamps import how_long
from worker.contract.words import STATUSES
from worker.dead_letters.letter import BY_CAUSE, causes_of
from worker.dead_letters.patch import Patches
from worker.dead_letters.plan import Plan
from worker.dead_letters.view import view
from worker.errors import UsageError

PAGE_SIZE = 50
PLAN_PATIENCE = 1.5  # seconds; a plan that takes longer is shown while it is in progress
LONGEST_NUMBER = 16  # digits in a query
# Records of another version may lack a field.
EMPTY_RECORD = dict.fromkeys(("message", *(str(each.alias) for each in JournalRecord.model_fields.values())))
PICKED = "-picked"
ACTIONS = frozenset({"replay", "discard", "correct", f"replay{PICKED}", f"discard{PICKED}"})

Document = Mapping[str, Any]


class Pages:
    """The handlers. For each page of PAGES, the method named after its template returns the document."""

    def __init__(self, sources: Sources, render: Renderer) -> None:
        self._sources = sources
        self._render = render

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """The routes of the handlers."""
        return (
            *(web.get(page.path, partial(self._serve, page)) for page in PAGES),
            web.post("/pause", partial(self.order, "pause")),
            web.post("/resume", partial(self.order, "resume")),
            web.post("/runs", self.plan),
            web.post("/runs/{number}/start", self.start),
            web.post("/runs/{number}/cancel", self.cancel),
        )

    async def _serve(self, page: Page, request: web.Request) -> web.Response:
        await self._sources.look(request, letters=page.shows_letters)
        return self._answer(request, page.template, await getattr(self, page.template)(request))

    def _answer(self, request: web.Request, template: str, document: Document) -> web.Response:
        """The document as JSON or as a page."""
        sources = self._sources
        return self._render.answer(
            request,
            template,
            document,
            dead=sources.state.value.queues.get("dead", len(sources.letters.rows.value)),
            broker=sources.state,
            copy=sources.letters,
            last_hour=sources.last_hour,
            runs=sources.runs,
        )

    async def overview(self, request: web.Request) -> Document:
        """The state of the deployment, and what to do next."""
        sources = self._sources
        await sources.last_hour.refreshed(ANSWER if wants_json(request) else 0)
        state, hour = sources.state.value, sources.last_hour
        situation, latency = self._situation(), hour.value.latency()
        return {
            "prefix": sources.settings.prefix,
            "asOf": sources.state.as_of,
            "state": situation[0].headline,
            "next": situation[0].advice,
            "situation": [each.document() | {"level": each.level} for each in situation],
            **state.document(),
            "inFlight": sum(worker.in_flight for worker in state.workers),
            "ratePerSecond": sum(worker.rate_per_second for worker in state.workers),
            "latencySeconds": latency,
            "lastHour": [
                {"at": at, **{status: counts.get(status, 0) for status in STATUSES}}
                for at, counts in hour.value.minutes()
            ],
            "deadLetters": sources.letters.causes,
            "problems": [text for text in (sources.state.trouble, *state.problems, hour.trouble) if text],
        }

    def _situation(self) -> list[Condition]:
        """The conditions of the deployment; never State.WELL unless it is known to be."""
        kept, letters = self._sources.state, self._sources.letters
        if kept.trouble:
            return [Condition(State.UNREACHABLE, kept.trouble, stops=True)]
        if kept.as_of is None:
            return [Condition(State.UNKNOWN, "RabbitMQ is being read")]
        if not kept.is_fresh:
            age = how_long(kept.as_of, datetime.now(UTC))
            return [Condition(State.UNKNOWN, f"RabbitMQ is being read; this page is {age} old")]
        return judge(kept.value, Counter(letter["reason"] for letter in letters.rows.value))

    async def dead_letters(self, request: web.Request) -> Document:
        """The causes, and the letters that match the filters, newest first."""
        selection, filters = asked_for(request.query, *LETTER_FILTERS)
        copy = self._sources.letters
        matching = [row for row in copy.rows.value if row in selection][::-1]
        causes = causes_of(matching, BY_CAUSE) if filters else copy.causes
        pages = max(1, -(-len(matching) // PAGE_SIZE))
        page = min(max(1, _number(request, "page") or 1), pages)
        shown = matching[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        return {
            "asOf": copy.rows.as_of,
            "total": copy.total,
            "kept": len(copy.rows.value),
            "version": copy.version,
            "filters": filters,
            "matching": len(matching),
            "page": page,
            "pages": pages,
            "groups": causes,
            "letters": shown,
            "problem": copy.rows.trouble or None,
        }

    async def letter(self, request: web.Request) -> Document:
        """One dead letter, with its cause and content."""
        name = request.match_info["letter"]
        try:
            letter = await self._sources.letters.find(name)
        except AmbiguousId:
            raise web.HTTPSeeOther(f"/dead-letters?{urlencode({'id': name})}") from None
        if letter is None:
            problem = "No dead letter has this id. The journal shows its outcome"
            raise web.HTTPNotFound(reason=problem)
        return view(letter, reveal=False)

    async def journal(self, request: web.Request) -> Document:
        """The outcomes of requests, newest first."""
        query, filters = asked_for(request.query, *JOURNAL_FILTERS)
        before = _number(request, "before")
        search = await self._sources.search(request, query, PAGE_SIZE, before)
        return {"filters": filters, "records": _records(search), **_searched(search)}

    async def resource(self, request: web.Request) -> Document:
        """One page or channel: the outcomes of its requests, and its dead letters."""
        platform = request.match_info["platform"]
        # A browser removes `.` and `..` from a path, so such an id is in the query.
        resource_id = request.match_info["resource"] or request.query.get("id", "")
        account = request.query.get("account", "")
        selection = Selection(
            platform=frozenset({platform}),
            resource=frozenset({resource_id}),
            account=frozenset({account} if account else ()),
        )
        search = await self._sources.search(request, selection, PAGE_SIZE)
        records = _records(search)
        return {
            "ottPlatformName": platform,
            "resourceId": resource_id,
            "registered": next((each for each in records if each["status"] == "registered"), None),
            "deadLetters": [row for row in self._sources.letters.rows.value if row in selection][::-1],
            "journal": records,
            **_searched(search),
        }

    async def audit(self, _: web.Request) -> Document:
        """All changes with their operators and reasons, newest first."""
        orders = self._sources.state.value.orders[::-1]
        return {"orders": [order.model_dump(mode="json") for order in orders]}

    async def run(self, request: web.Request) -> Document:
        """A replay or discard: its plan, its progress, and the outcome of each letter."""
        return self._run_of(request).document()

    def _run_of(self, request: web.Request) -> ConsoleRun:
        """The run in the path. Raises HTTPNotFound."""
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is no longer known")
        return run

    async def order(self, order: OrderKind, request: web.Request) -> web.Response:
        """Order all workers to pause or resume."""
        why = why_of(await form_of(request))
        await publish_order(self._sources.settings, Order.now(order, why, by=_by(request)))
        self._sources.expire()
        await self._sources.state.refreshed(ANSWER if wants_json(request) else PLAN_PATIENCE)
        if wants_json(request):
            return self._answer(request, "overview", self._sources.state.value.document())
        raise web.HTTPSeeOther("/")

    async def plan(self, request: web.Request) -> web.Response:
        """Make a plan for the letters of the form: the selected ones, or all that its page showed."""
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
            await letters.rows.refreshed(ANSWER)
            selection, _ = asked_for(form, *LETTER_FILTERS)
            keys = letters.shown(selection, form.get("version", ""))
        if do == "correct":
            found = await letters.find(letter) if letter else None
            if letter and found is None:
                raise UsageError("The letter is not in the queue any more.")
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
        """Execute a plan."""
        form, run = await form_of(request), self._run_of(request)
        plan, active = run.plan, self._sources.runs.active
        if run.phase != "planned":
            raise UsageError("This was started already, or its plan failed: make a new one.")
        if active is not None:
            raise UsageError(
                f"Another run is in progress ({active.stage}): wait until it ends, or cancel it."
            )
        if plan.refusal:
            raise UsageError(plan.refusal)
        is_counted = form.get("count", "").replace(",", "").strip() == str(run.count)
        if plan.kind == "discard" and not is_counted:
            raise UsageError(f"Enter {run.count}, the number of letters, to remove them for good.")
        run.by, run.why, rate = _by(request), why_of(form), rate_of(form)
        canary = form.get("canary") == "one"
        task = run.begin("running", run.perform(by=run.by, why=run.why, canary=canary, rate=rate))
        task.add_done_callback(lambda _: self._sources.expire())
        return self._shown(request, run)

    async def cancel(self, request: web.Request) -> web.Response:
        """End a run after the letters in progress; the others stay in the queue."""
        run = self._run_of(request)
        run.stop()
        return self._shown(request, run)

    def _shown(self, request: web.Request, run: ConsoleRun) -> web.Response:
        if wants_json(request):
            return self._answer(request, "run", run.document())
        raise web.HTTPSeeOther(f"/runs/{run.number}")


def _records(search: Cached[JournalPage]) -> list[dict[str, Any]]:
    return [{**EMPTY_RECORD, **record} for record in search.value.records]


def _searched(search: Cached[JournalPage]) -> dict[str, Any]:
    """The progress of a search."""
    page = search.value
    return {
        "asOf": search.as_of,
        "backTo": page.back_to,
        "isAll": page.is_all,
        "problem": search.trouble or None,
    }


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name, "")
    return int(text) if text.isdecimal() and len(text) < LONGEST_NUMBER else None


def _by(request: web.Request) -> str:
    return request.get(SESSION) or whoami()
