"""The pages to look at; each is JSON for those who ask for that (contract §11)."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from worker.broker.journal_query import JournalQuery
from worker.broker.situation import Condition, State, Trend, judge
from worker.broker.topology import Topology
from worker.console.chart import STACK, chart_of
from worker.console.journal_search import Found
from worker.console.kept import refreshed
from worker.console.last_hour import time_of
from worker.console.letters import as_time, filter_of
from worker.console.patch_form import Field, fields_of
from worker.console.rendering import PAGES, Renderer, wants_json
from worker.console.run import LETTERS_SHOWN, ConsoleRun
from worker.console.sources import ANSWER, PAINT, Sources
from worker.contract.control import Order
from worker.contract.journal_record import JournalRecord
from worker.contract.platforms import ATTRIBUTES, PLATFORM_NAME, PLATFORMS, Platform
from worker.contract.timestamps import how_long
from worker.dead_letters.groups import Cause, advice, causes_of
from worker.dead_letters.plan import Planned
from worker.dead_letters.selection import AmbiguousId, Selection
from worker.dead_letters.view import view

PAGE_SIZE = 50
LONGEST_NUMBER = 16  # digits in a query
CAUSES_SHOWN = 6
NAMES = frozenset(name for each in PLATFORMS.values() for name in each.fields) | {PLATFORM_NAME, ATTRIBUTES}
_FIELD = re.compile(r'\s*"(\w+)":')
# Records that another version wrote may lack a field.
EMPTY_RECORD = dict.fromkeys(("message", *(str(each.alias) for each in JournalRecord.model_fields.values())))


class Pages:
    """The handlers."""

    def __init__(self, sources: Sources, render: Renderer) -> None:
        self._sources = sources
        self._render = render
        self._trend = Trend()

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (
            *(web.get(page.path, getattr(self, page.handler)) for page in PAGES),
            web.get(r"/dead-letters/{id:[\s\S]+}", self.letter),
            web.get(r"/resources/{platform}/{id:[\s\S]*}", self.resource),
            web.get("/runs", self.all_runs),
            web.get("/runs/{number}", self.run),
        )

    async def overview(self, request: web.Request) -> web.Response:
        """The state of everything, and what to do next."""
        sources = self._sources
        sources.last_hour.look()
        await sources.look(request)
        now = datetime.now(UTC)
        state, causes = sources.state.value, sources.letters.causes
        situation = self._situation()
        in_flight = sum(worker.in_flight for worker in state.workers)
        rate = sum(worker.rate_per_second for worker in state.workers)
        minutes = sources.last_hour.minutes(now)
        latency = sources.last_hour.latency(now)
        document = {
            "prefix": sources.settings.prefix,
            "asOf": sources.state.as_of,
            "state": situation[0].headline,
            "next": situation[0].advice,
            "situation": [condition.document() for condition in situation],
            "lost": [worker.model_dump(mode="json", by_alias=True) for worker in state.lost],
            "workers": [worker.model_dump(mode="json", by_alias=True) for worker in state.workers],
            "paused": state.pause and state.pause.model_dump(mode="json"),
            "queues": state.queues,
            "inFlight": in_flight,
            "ratePerSecond": rate,
            "latencySeconds": latency and {"median": latency.median, "p95": latency.p95},
            "lastHour": [
                {"at": at, **{status: counts.get(status, 0) for status in STACK}} for at, counts in minutes
            ],
            "deadLetters": [cause.document() for cause in causes],
            "problems": [
                text for text in (sources.state.trouble, *state.problems, sources.last_hour.trouble) if text
            ],
        }
        return self._answer(
            request,
            "overview.html",
            document,
            situation=situation,
            now=now,
            state=state,
            in_flight=in_flight,
            rate=rate,
            causes=causes[:CAUSES_SHOWN],
            more_causes=max(0, len(causes) - CAUSES_SHOWN),
            chart=chart_of(minutes),
            latency=latency,
            last_hour=sources.last_hour,
        )

    def _situation(self) -> list[Condition]:
        """Nothing is called well that is not known to be."""
        kept, letters = self._sources.state, self._sources.letters
        if not kept.trouble and kept.as_of is not None and not kept.is_fresh:
            cause = f"what is shown is {how_long(kept.as_of, datetime.now(UTC))} old"
            return [Condition(State.UNKNOWN, cause, "RabbitMQ is being asked.", stops=False)]
        return judge(
            kept.value,
            Topology(self._sources.settings.prefix),
            trouble=kept.trouble,
            is_known=kept.as_of is not None,
            growth=self._trend.growth(time.monotonic(), kept.value.queues.get("requests")),
            dead=[(each.count, each.reason, advice(each.reason)) for each in letters.causes],
        )

    async def dead_letters(self, request: web.Request) -> web.Response:
        """Causes, and the letters that match the filters, the newest first."""
        wanted = filter_of(request.query)
        await self._sources.look(request)
        copy = self._sources.letters
        matching = list(wanted.apply(copy.rows.value))
        causes = causes_of(matching) if wanted else copy.causes
        page = _page(request, len(matching))
        shown = list(islice(reversed(matching), (page - 1) * PAGE_SIZE, page * PAGE_SIZE))
        document = {
            "asOf": copy.rows.as_of,
            "total": copy.total,
            "kept": len(copy.rows.value),
            "version": copy.version,
            "matching": len(matching),
            "page": page,
            "pages": _pages(len(matching)),
            "groups": [cause.document() for cause in causes],
            "letters": [{**row.document(), "cause": row.cause} for row in shown],
            "problem": copy.rows.trouble or None,
        }
        return self._answer(
            request,
            "dead_letters.html",
            document,
            wanted=wanted,
            copy=copy,
            matching=len(matching),
            causes=causes,
            cause=causes[0] if wanted.selection.causes and causes else None,
            advice=advice,
            correctable=_correctable(causes),
            fields=_fields(causes),
            rows=shown,
            page=page,
            pages=_pages(len(matching)),
            **copy.choices,
        )

    async def letter(self, request: web.Request) -> web.Response:
        """One dead letter: why it is one, what it holds, what else is known of its resource."""
        await self._sources.look(request)
        name = request.match_info["id"]
        try:
            letter = await self._sources.letters.find(name)
        except AmbiguousId:
            raise web.HTTPSeeOther(f"/dead-letters?{urlencode({'id': name})}") from None
        if letter is None:
            return await self._gone(request)
        document, facts, named = view(letter, reveal=False), letter.facts(), named_fields(letter.error)
        platform = PLATFORMS.get(request.query.get("platform") or letter.platform or "")
        same = sum(
            (row.account, row.platform, row.resource_id) == (facts.account, facts.platform, facts.resource_id)
            for row in self._sources.letters.rows.value
        )
        return self._answer(
            request,
            "letter.html",
            document,
            letter=facts,
            message=document,
            body=marked_lines(document["body"], named) if "body" in document else [],
            same=same if letter.resource else 0,
            advice=advice,
            platform=platform,
            platforms=sorted(PLATFORMS),
            fields=fields_of(document, platform, named) if platform else [],
        )

    async def _gone(self, request: web.Request) -> web.Response:
        """The letter is not there any more: what became of its request?"""
        request_id = request.match_info["id"]
        found = await self._search(request, JournalQuery(ids=frozenset({request_id})))
        document = {"id": request_id, "problem": "No dead letter has this id.", "journal": found.records}
        response = self._answer(
            request,
            "letter_gone.html",
            document,
            request_id=request_id,
            found=found,
            events=_events(found.records),
        )
        response.set_status(404)
        return response

    async def _search(self, request: web.Request, query: JournalQuery, before: int | None = None) -> Found:
        patience = ANSWER if wants_json(request) else PAINT
        return await self._sources.journal.find(query, PAGE_SIZE, patience, before)

    async def journal(self, request: web.Request) -> web.Response:
        """What became of requests, the newest first."""
        given = {
            name: value
            for name in ("id", "resource", "platform", "account", "status", "reason")
            if (value := request.query.get(name, "").strip())
        }
        before = request.query.get("before", "")
        before = before if before.isdecimal() and len(before) < LONGEST_NUMBER else ""
        query = JournalQuery(
            ids=_words(given, "id"),
            resources=_words(given, "resource"),
            platforms=_words(given, "platform"),
            accounts=_words(given, "account"),
            statuses=_words(given, "status"),
            reasons=_words(given, "reason"),
        )
        await refreshed(PAINT, self._sources.state)
        found = await self._search(request, query, int(before) if before else None)
        document = {
            "records": found.records,
            "backTo": found.page.back_to,
            "isAll": found.page.is_all,
            "problem": found.problem or None,
        }
        return self._answer(
            request,
            "journal.html",
            document,
            given=given,
            found=found,
            events=_events(found.records),
            is_first=not before,
        )

    async def resource(self, request: web.Request) -> web.Response:
        """One page or channel: what became of its requests, and which of them lie among the dead letters."""
        platform = request.match_info["platform"]
        # A browser takes `.` and `..` out of a path: such an id stands in the query.
        resource_id = request.match_info["id"] or request.query.get("id", "")
        account = request.query.get("account", "")
        wanted = Selection(
            platforms=frozenset({platform}),
            resources=frozenset({resource_id}),
            accounts=frozenset({account} if account else ()),
        )
        await self._sources.look(request)
        query = JournalQuery(platforms=wanted.platforms, resources=wanted.resources, accounts=wanted.accounts)
        found = await self._search(request, query)
        waiting = [row for row in self._sources.letters.rows.value if row in wanted][::-1]
        registered = next((r for r in found.records if r.get("status") == "registered"), None)
        document = {
            "ottPlatformName": platform,
            "resourceId": resource_id,
            "registered": registered,
            "deadLetters": [letter.document() for letter in waiting],
            "journal": found.records,
            "isAll": found.page.is_all,
        }
        return self._answer(
            request,
            "resource.html",
            document,
            platform=platform,
            resource_id=resource_id,
            waiting=waiting,
            registered=registered and {"record": registered, "at": time_of(registered, "completedAt")},
            events=_events(found.records),
            found=found,
        )

    async def audit(self, request: web.Request) -> web.Response:
        """Who changed what, and why; the newest first."""
        await refreshed(ANSWER if wants_json(request) else PAINT, self._sources.state)
        orders = self._sources.state.value.orders[::-1]
        document = {"orders": [order.model_dump(mode="json", exclude_none=True) for order in orders]}
        acts = _acts(orders)[: 10 * PAGE_SIZE]
        known = {run.number for run in self._sources.runs.newest_first()}
        return self._answer(request, "audit.html", document, acts=acts, known=known)

    async def all_runs(self, request: web.Request) -> web.Response:
        """The replays and discards of this console, the newest first."""
        await refreshed(PAINT, self._sources.state)
        runs = self._sources.runs.newest_first()
        document = {"runs": [_run_document(run) for run in runs]}
        return self._answer(request, "runs.html", document, runs=runs)

    async def run(self, request: web.Request) -> web.Response:
        """A replay or a discard: its plan, how far it is, and what came of each letter."""
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        await refreshed(PAINT, self._sources.state)
        return self.show_run(request, run)

    def show_run(self, request: web.Request, run: ConsoleRun) -> web.Response:
        """The page of a run, or the same as JSON."""
        document = {
            **_run_document(run),
            "letters": [_run_letter(run, letter) for letter in run.letters],
        }
        shown = [_run_letter(run, letter) for letter in run.worst_first()[:LETTERS_SHOWN]]
        return self._answer(request, "run.html", document, this=run, letters=shown)

    def _answer(
        self, request: web.Request, template: str, document: Mapping[str, Any], **values: Any
    ) -> web.Response:
        sources = self._sources
        dead = sources.state.value.queues.get("dead", len(sources.letters.rows.value))
        return self._render.answer(
            request,
            template,
            document,
            dead=dead,
            broker=sources.state,
            active=sources.runs.active,
            as_time=as_time,
            **values,
        )


def _events(records: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], datetime | None]]:
    return [({**EMPTY_RECORD, **record}, time_of(record, "completedAt")) for record in records]


def _acts(orders: Sequence[Order]) -> list[Order]:
    """One line for each act: a change of dead letters that has ended stands for its beginning too."""
    ended = {order.run for order in orders if order.run and order.order in ("replayed", "discarded")}
    return [
        order
        for order in orders
        if order.order not in ("replaying", "discarding") or (order.run and order.run not in ended)
    ]


def _correctable(causes: Sequence[Cause]) -> Platform | None:
    """The platform of the letters on a cause's page, whose fields its form corrects."""
    return PLATFORMS.get(causes[0].platform or "") if len(causes) == 1 else None


def _fields(causes: Sequence[Cause]) -> list[Field]:
    platform = _correctable(causes)
    return fields_of(None, platform, named_fields(causes[0].error)) if platform else []


def named_fields(error: str) -> frozenset[str]:
    """The fields that an error names, in whichever case."""
    words = {word.casefold() for word in re.findall(r"\w+", error)}
    return frozenset(name for name in NAMES if name.casefold() in words)


def marked_lines(body: object, named: frozenset[str]) -> list[tuple[str, bool]]:
    """A body in lines, each with whether it holds a field that the error names."""
    lines = json.dumps(body, ensure_ascii=False, indent=2).splitlines()
    return [(line, (found := _FIELD.match(line)) is not None and found[1] in named) for line in lines]


def _words(given: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset({given[name]} if name in given else ())


def _run_document(run: ConsoleRun) -> dict[str, Any]:
    return {
        "run": run.number,
        "kind": run.kind,
        "phase": run.phase,
        "stage": run.run.stage,
        "problem": run.problem or None,
        "refusal": run.refusal or None,
        "plan": dict(run.counts),
        "causes": list(run.causes),
        "count": run.count,
        "done": run.done,
        "gone": sorted(run.run.gone),
        "changed": sorted(run.run.changed),
        "outcomes": dict(run.run.statuses),
    }


def _run_letter(run: ConsoleRun, letter: Planned) -> dict[str, Any]:
    record = run.outcome_of(letter)
    return {
        "letter": letter.key,
        "id": letter.facts.id,
        "ottPlatformName": letter.facts.platform,
        "resourceId": letter.facts.resource_id,
        "forecast": letter.outcome,
        "why": letter.why,
        "status": record.get("status"),
        "errors": list(record.get("errors") or ()),
        "message": record.get("message"),
        "httpStatus": record.get("httpStatus"),
        "supersededBy": record.get("supersededBy"),
        "reason": record.get("reason"),
    }


def _page(request: web.Request, matching: int) -> int:
    text = request.query.get("page", "1")
    number = int(text) if text.isdecimal() and len(text) < LONGEST_NUMBER else 1
    return min(max(1, number), _pages(matching))


def _pages(matching: int) -> int:
    return max(1, -(-matching // PAGE_SIZE))
