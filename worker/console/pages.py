"""The pages to look at; each is JSON for those who ask for that (contract §11)."""

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from aiohttp import web

from worker.broker.situation import Condition, State, Trend, judge
from worker.broker.topology import Topology
from worker.console.chart import STACK, chart_of
from worker.console.journal_search import Found, Wanted
from worker.console.kept import refreshed
from worker.console.last_hour import time_of
from worker.console.letters import (
    as_time,
    causes_of,
    filter_of,
)
from worker.console.patch_form import fields_of
from worker.console.rendering import Renderer, wants_json
from worker.console.run import BAD, STAYING, Planned, Run
from worker.console.sources import ANSWER, PAINT, Sources
from worker.contract.journal_record import JournalRecord
from worker.contract.platforms import PLATFORMS
from worker.contract.timestamps import how_long
from worker.dead_letters.hints import hint
from worker.dead_letters.view import view

PAGE_SIZE = 50
CAUSES_SHOWN = 6
LETTERS_SHOWN = 200  # of a run
# Records that another version wrote may lack a field.
EMPTY_RECORD = dict.fromkeys(str(each.alias) for each in JournalRecord.model_fields.values())


class Pages:
    """The handlers."""

    def __init__(self, sources: Sources, render: Renderer) -> None:
        self._sources = sources
        self._render = render
        self._trend = Trend()

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (
            web.get("/", self.overview),
            web.get("/dead-letters", self.dead_letters),
            web.get("/dead-letters/{id:.+}", self.letter),
            web.get("/journal", self.journal),
            web.get("/resources/{platform}/{id:.+}", self.resource),
            web.get("/audit", self.audit),
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
            dead=[(each.group.count, each.group.reason, hint(each.group.reason)) for each in letters.causes],
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
            "total": len(copy.rows.value),
            "matching": len(matching),
            "page": page,
            "pages": _pages(len(matching)),
            "groups": [cause.document() for cause in causes],
            "letters": [{**row.letter.summary(), "cause": row.cause} for row in shown],
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
            rows=shown,
            page=page,
            pages=_pages(len(matching)),
            **copy.choices,
        )

    async def letter(self, request: web.Request) -> web.Response:
        """One dead letter: why it is one, what it holds, what else is known of its resource."""
        await self._sources.look(request)
        letter = await self._sources.letters.find(request.match_info["id"])
        if letter is None:
            return await self._gone(request)
        document = view(letter, reveal=False)
        platform = PLATFORMS.get(request.query.get("platform") or letter.platform or "")
        same = [
            row.letter
            for row in self._sources.letters.rows.value
            if letter.resource is not None and row.letter.resource == letter.resource
        ]
        return self._answer(
            request,
            "letter.html",
            document,
            letter=letter,
            message=document,
            same=len(same),
            platform=platform,
            platforms=sorted(PLATFORMS),
            fields=fields_of(document, platform) if platform else [],
        )

    async def _gone(self, request: web.Request) -> web.Response:
        """The letter is not there any more: what became of its request?"""
        request_id = request.match_info["id"]
        found = await self._search(request, Wanted(id=request_id))
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

    async def _search(self, request: web.Request, wanted: Wanted) -> Found:
        return await self._sources.journal.find(wanted, PAGE_SIZE, ANSWER if wants_json(request) else PAINT)

    async def journal(self, request: web.Request) -> web.Response:
        """What became of requests, the newest first."""
        given = {
            name: value
            for name in ("id", "resource", "platform", "account", "status", "reason")
            if (value := request.query.get(name, "").strip())
        }
        before = request.query.get("before", "")
        wanted = Wanted(**given, before=int(before) if before.isdecimal() else None)
        await refreshed(PAINT, self._sources.state)
        found = await self._search(request, wanted)
        document = {
            "records": found.records,
            "backTo": found.back_to,
            "isAll": found.is_all,
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
        platform, resource_id = request.match_info["platform"], request.match_info["id"]
        account = request.query.get("account", "")
        await self._sources.look(request)
        found = await self._search(request, Wanted(platform=platform, resource=resource_id, account=account))
        waiting = [
            row.letter
            for row in self._sources.letters.rows.value
            if (row.letter.platform, row.letter.resource_id) == (platform, resource_id)
            and (not account or row.letter.account == account)
        ][::-1]
        registered = next((r for r in found.records if r.get("status") == "registered"), None)
        document = {
            "ottPlatformName": platform,
            "resourceId": resource_id,
            "registered": registered,
            "deadLetters": [letter.summary() for letter in waiting],
            "journal": found.records,
            "isAll": found.is_all,
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
        return self._answer(request, "audit.html", document, orders=orders[: 10 * PAGE_SIZE])

    async def run(self, request: web.Request) -> web.Response:
        """A replay or a discard: its plan, how far it is, and what came of each letter."""
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        await refreshed(PAINT, self._sources.state)
        return self.show_run(request, run)

    def show_run(self, request: web.Request, run: Run) -> web.Response:
        """The page of a run, or the same as JSON."""
        document = {
            "run": run.number,
            "kind": run.kind,
            "phase": run.phase,
            "stage": run.stage,
            "problem": run.problem or None,
            "plan": dict(run.forecasts),
            "count": run.count,
            "done": run.done,
            "outcomes": dict(run.statuses),
            "letters": [_run_letter(run, letter) for letter in run.planned],
        }
        return self._answer(
            request,
            "run.html",
            document,
            this=run,
            letters=[_run_letter(run, letter) for letter in _worst_first(run)[:LETTERS_SHOWN]],
        )

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


def _run_letter(run: Run, letter: Planned) -> dict[str, Any]:
    record = run.outcomes.get(letter.id, {})
    return {
        "id": letter.id,
        "ottPlatformName": letter.platform,
        "resourceId": letter.resource_id,
        "forecast": letter.forecast,
        "why": letter.why,
        "status": record.get("status"),
        "errors": list(record.get("errors") or ()),
        "reason": record.get("reason"),
    }


def _worst_first(run: Run) -> list[Planned]:
    """What somebody must look at comes first, then what has an outcome."""

    def rank(letter: Planned) -> int:
        status = run.outcomes.get(letter.id, {}).get("status")
        if status in BAD or (status is None and letter.forecast in ("rejected", *STAYING)):
            return 0
        return 1 if letter.forecast == "superseded" else 2

    return sorted(run.planned, key=rank)


def _page(request: web.Request, matching: int) -> int:
    text = request.query.get("page", "1")
    number = int(text) if text.isdecimal() and len(text) < 10 else 1
    return min(max(1, number), _pages(matching))


def _pages(matching: int) -> int:
    return max(1, -(-matching // PAGE_SIZE))
