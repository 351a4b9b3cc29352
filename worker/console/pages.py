"""The pages to look at; each is JSON for those who ask for that (contract §11)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from worker.broker.journal import JournalPage
from worker.broker.situation import Condition, State, advice, judge
from worker.console.forms import fields_of, letters_asked_for, records_asked_for
from worker.console.rendering import PAGES, STACK, Page, Renderer, chart_of, moment_of
from worker.console.runs import ConsoleRun
from worker.console.sources import Cached, Sources
from worker.contract.platforms import PLATFORMS
from worker.contract.selection import AmbiguousId, Selection
from worker.contract.settlement import JournalRecord
from worker.contract.status import Order
from worker.contract.timestamps import how_long
from worker.contract.words import REASONS, STATUSES
from worker.dead_letters.letter import BY_CAUSE, causes_of
from worker.dead_letters.view import view

PAGE_SIZE = 50
LONGEST_NUMBER = 16  # digits in a query
ACTS_SHOWN = 500
# Records that another version wrote may lack a field.
EMPTY_RECORD = dict.fromkeys(("message", *(str(each.alias) for each in JournalRecord.model_fields.values())))


class Pages:
    """The handlers: for each page of PAGES the method of its name."""

    def __init__(self, sources: Sources, render: Renderer) -> None:
        self._sources = sources
        self._render = render

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (web.get(page.path, partial(self._serve, page)) for page in PAGES)

    async def _serve(self, page: Page, request: web.Request) -> web.Response:
        await self._sources.look(request, letters=page.shows_letters)
        response: web.Response = await getattr(self, page.template)(request)
        return response

    def _answer(
        self, request: web.Request, template: str, document: Mapping[str, Any], **values: Any
    ) -> web.Response:
        """The document for those that want JSON, else the page, whose template needs the values besides."""
        sources = self._sources
        return self._render.answer(
            request,
            template,
            document,
            dead=sources.state.value.queues.get("dead", len(sources.letters.rows.value)),
            broker=sources.state,
            active=sources.runs.active,
            copy=sources.letters,
            advice=advice,
            **values,
        )

    async def overview(self, request: web.Request) -> web.Response:
        """The state of everything, and what to do next."""
        sources = self._sources
        sources.last_hour.refresh()
        state, hour, causes = sources.state.value, sources.last_hour, sources.letters.causes
        situation, minutes, latency = self._situation(), hour.value.minutes(), hour.value.latency()
        document = {
            "prefix": sources.settings.prefix,
            "asOf": sources.state.as_of,
            "state": situation[0].headline,
            "next": situation[0].advice,
            "situation": [condition.document() for condition in situation],
            **state.document(),
            "inFlight": sum(worker.in_flight for worker in state.workers),
            "ratePerSecond": sum(worker.rate_per_second for worker in state.workers),
            "latencySeconds": latency,
            "lastHour": [
                {"at": at, **{status: counts.get(status, 0) for status in STACK}} for at, counts in minutes
            ],
            "deadLetters": causes,
            "problems": [text for text in (sources.state.trouble, *state.problems, hour.trouble) if text],
        }
        return self._answer(
            request,
            "overview",
            document,
            situation=situation,
            state=state,
            causes=causes,
            chart=chart_of(minutes),
            latency=latency,
            last_hour=hour,
        )

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

    async def dead_letters(self, request: web.Request) -> web.Response:
        """Causes, and the letters that match the filters, the newest first."""
        selection, given = letters_asked_for(request.query)
        copy = self._sources.letters
        matching = [row for row in copy.rows.value if row in selection]
        causes = causes_of(matching, BY_CAUSE) if given else copy.causes
        pages = max(1, -(-len(matching) // PAGE_SIZE))
        page = min(max(1, _number(request, "page") or 1), pages)
        shown = list(islice(reversed(matching), (page - 1) * PAGE_SIZE, page * PAGE_SIZE))
        document = {
            "asOf": copy.rows.as_of,
            "total": copy.total,
            "kept": len(copy.rows.value),
            "version": copy.version,
            "matching": len(matching),
            "page": page,
            "pages": pages,
            "groups": causes,
            "letters": shown,
            "problem": copy.rows.trouble or None,
        }
        platform = PLATFORMS.get(causes[0]["ottPlatformName"] or "") if len(causes) == 1 else None
        return self._answer(
            request,
            "dead_letters",
            document,
            given=given,
            causes=causes,
            cause=causes[0] if "cause" in given and causes else None,
            correctable=platform,
            fields=fields_of(None, platform) if platform else [],
            rows=shown,
        )

    async def letter(self, request: web.Request) -> web.Response:
        """One dead letter: why it is one, and what it holds."""
        name = request.match_info["letter"]
        try:
            letter = await self._sources.letters.find(name)
        except AmbiguousId:
            raise web.HTTPSeeOther(f"/dead-letters?{urlencode({'id': name})}") from None
        if letter is None:
            problem = "No dead letter has this id. The journal tells what became of it"
            raise web.HTTPNotFound(reason=problem)
        document = view(letter, reveal=False)
        platform = PLATFORMS.get(request.query.get("platform") or letter.facts["ottPlatformName"] or "")
        return self._answer(
            request,
            "letter",
            document,
            letter=letter.shown(),
            platform=platform,
            platforms=sorted(PLATFORMS),
            fields=fields_of(document, platform) if platform else [],
        )

    async def journal(self, request: web.Request) -> web.Response:
        """What became of requests, the newest first."""
        query, given = records_asked_for(request.query)
        before = _number(request, "before")
        search = await self._sources.search(request, query, PAGE_SIZE, before)
        document = {
            "records": search.value.records,
            "backTo": search.value.back_to,
            "isAll": search.value.is_all,
            "problem": search.trouble or None,
        }
        return self._answer(
            request,
            "journal",
            document,
            given=given,
            search=search,
            events=_events(search),
            is_first=before is None,
            statuses=STATUSES,
            reasons=REASONS,
        )

    async def resource(self, request: web.Request) -> web.Response:
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
        waiting = [row for row in self._sources.letters.rows.value if row in selection][::-1]
        events = _events(search)
        registered = next((each for each in events if each[0]["status"] == "registered"), None)
        document = {
            "ottPlatformName": platform,
            "resourceId": resource_id,
            "registered": registered and registered[0],
            "deadLetters": waiting,
            "journal": search.value.records,
            "isAll": search.value.is_all,
        }
        values = {"waiting": waiting, "registered": registered, "events": events, "search": search}
        return self._answer(request, "resource", document, **values)

    async def audit(self, request: web.Request) -> web.Response:
        """Who changed what, and why; the newest first."""
        orders = self._sources.state.value.orders[::-1]
        document = {"orders": [order.model_dump(mode="json", exclude_none=True) for order in orders]}
        known = self._sources.runs
        return self._answer(request, "audit", document, acts=_acts(orders)[:ACTS_SHOWN], known=known)

    async def run(self, request: web.Request) -> web.Response:
        """A replay or a discard: its plan, how far it is, and what came of each letter."""
        run = self.run_of(request)
        return self.shown(request, run)

    def run_of(self, request: web.Request) -> ConsoleRun:
        """The run that the path names. Raises HTTPNotFound."""
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        return run

    def shown(self, request: web.Request, run: ConsoleRun) -> web.Response:
        """The page of a run."""
        return self._answer(request, "run", run.document(), this=run)


def _events(search: Cached[JournalPage]) -> list[tuple[Mapping[str, Any], datetime | None]]:
    return [
        ({**EMPTY_RECORD, **record}, moment_of(record.get("completedAt"))) for record in search.value.records
    ]


def _acts(orders: Sequence[Order]) -> list[Order]:
    """One line for each act: a change of dead letters that has ended stands for its beginning too."""
    ended = {order.run for order in orders if order.run and order.order in ("replayed", "discarded")}
    return [
        order
        for order in orders
        if order.order not in ("replaying", "discarding") or (order.run and order.run not in ended)
    ]


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name, "")
    return int(text) if text.isdecimal() and len(text) < LONGEST_NUMBER else None
