"""The pages to look at: each is a document, shown by its template or as JSON (contract §11)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from worker.broker.journal import JournalPage
from worker.broker.situation import Condition, State, judge
from worker.console.forms import JOURNAL_FILTERS, LETTER_FILTERS, asked_for
from worker.console.rendering import PAGES, Page, Renderer
from worker.console.runs import ConsoleRun
from worker.console.sources import Cached, Sources
from worker.contract.selection import AmbiguousId, Selection
from worker.contract.settlement import JournalRecord
from worker.contract.timestamps import how_long
from worker.contract.words import STATUSES
from worker.dead_letters.letter import BY_CAUSE, causes_of
from worker.dead_letters.view import view

PAGE_SIZE = 50
LONGEST_NUMBER = 16  # digits in a query
# Records that another version wrote may lack a field.
EMPTY_RECORD = dict.fromkeys(("message", *(str(each.alias) for each in JournalRecord.model_fields.values())))

Document = Mapping[str, Any]


class Pages:
    """The handlers: for each page of PAGES the method of its name makes the document."""

    def __init__(self, sources: Sources, render: Renderer) -> None:
        self._sources = sources
        self._render = render

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (web.get(page.path, partial(self._serve, page)) for page in PAGES)

    async def _serve(self, page: Page, request: web.Request) -> web.Response:
        await self._sources.look(request, letters=page.shows_letters)
        return self.answer(request, page.template, await getattr(self, page.template)(request))

    def answer(self, request: web.Request, template: str, document: Document) -> web.Response:
        """The document, or its page."""
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

    async def overview(self, _: web.Request) -> Document:
        """The state of everything, and what to do next."""
        sources = self._sources
        sources.last_hour.refresh()
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
        """Nothing is called well that is not known to be."""
        kept, letters = self._sources.state, self._sources.letters
        if kept.trouble:
            return [Condition(State.UNREACHABLE, kept.trouble, stops=True)]
        if kept.as_of is None:
            return [Condition(State.UNKNOWN, "RabbitMQ is being asked")]
        if not kept.is_fresh:
            age = how_long(kept.as_of, datetime.now(UTC))
            return [Condition(State.UNKNOWN, f"RabbitMQ is being asked; what is shown is {age} old")]
        return judge(kept.value, Counter(letter["reason"] for letter in letters.rows.value))

    async def dead_letters(self, request: web.Request) -> Document:
        """Causes, and the letters that match the filters, the newest first."""
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
        """One dead letter: why it is one, and what it holds."""
        name = request.match_info["letter"]
        try:
            letter = await self._sources.letters.find(name)
        except AmbiguousId:
            raise web.HTTPSeeOther(f"/dead-letters?{urlencode({'id': name})}") from None
        if letter is None:
            problem = "No dead letter has this id. The journal tells what became of it"
            raise web.HTTPNotFound(reason=problem)
        return view(letter, reveal=False)

    async def journal(self, request: web.Request) -> Document:
        """What became of requests, the newest first."""
        query, filters = asked_for(request.query, *JOURNAL_FILTERS)
        before = _number(request, "before")
        search = await self._sources.search(request, query, PAGE_SIZE, before)
        return {"filters": filters, "records": _records(search), **_searched(search)}

    async def resource(self, request: web.Request) -> Document:
        """One page or channel: what became of its requests, and which of them are among the dead letters."""
        platform = request.match_info["platform"]
        # A browser takes `.` and `..` out of a path: such an id stands in the query.
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
        """Who changed what, and why; the newest first."""
        orders = self._sources.state.value.orders[::-1]
        return {"orders": [order.model_dump(mode="json") for order in orders]}

    async def run(self, request: web.Request) -> Document:
        """A replay or a discard: its plan, how far it is, and what came of each letter."""
        return self.run_of(request).document()

    def run_of(self, request: web.Request) -> ConsoleRun:
        """The run that the path names. Raises HTTPNotFound."""
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        return run


def _records(search: Cached[JournalPage]) -> list[dict[str, Any]]:
    return [{**EMPTY_RECORD, **record} for record in search.value.records]


def _searched(search: Cached[JournalPage]) -> dict[str, Any]:
    """How far a search has come."""
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
