"""What changes something: pause and resume, and runs of a replay or a discard. By POST alone, and with a
reason."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from typing import get_args

from aiohttp import web
from multidict import MultiDict

from worker.broker.control_stream import publish_order
from worker.console.kept import refreshed
from worker.console.letters import filter_of
from worker.console.pages import Pages
from worker.console.patch_form import Change, patch_of
from worker.console.rendering import wants_json
from worker.console.run import Canary, Kind, Run
from worker.console.session import SESSION
from worker.console.sources import ANSWER, Sources
from worker.contract.control import Order, whoami
from worker.contract.platforms import PLATFORMS
from worker.dead_letters.patch import Patch
from worker.dead_letters.view import view
from worker.errors import UsageError

PLAN_PATIENCE = 1.5  # seconds; a plan that takes longer is shown while it is made
PICKED = "-picked"
MAX_RATE = 1e6  # letters a second
WHY_LENGTH = 200
CANARIES: Mapping[str, Canary] = {name: name for name in get_args(Canary)}


class Changes:
    """The handlers."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._sources = sources
        self._pages = pages

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (
            web.post("/pause", self.pause),
            web.post("/resume", self.resume),
            web.post("/runs", self.plan),
            web.post("/runs/{number}/start", self.start),
            web.post("/runs/{number}/cancel", self.cancel),
        )

    async def pause(self, request: web.Request) -> web.StreamResponse:
        """Order all workers to pause."""
        why = _why(await _form(request))
        await publish_order(self._sources.settings, Order.now("pause", why, by=_by(request)))
        return await self._ordered(request)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        """Order all workers to go on."""
        why = _why(await _form(request))
        await publish_order(self._sources.settings, Order.now("resume", why, by=_by(request)))
        return await self._ordered(request)

    async def _ordered(self, request: web.Request) -> web.StreamResponse:
        self._sources.expire()
        await refreshed(PLAN_PATIENCE, self._sources.state)
        if wants_json(request):
            pause = self._sources.state.value.pause
            return web.json_response({"paused": pause and pause.model_dump(mode="json")})
        return _see("/")

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """Make a plan for the letters of the form: those picked, or all that match its filters."""
        form = await _form(request)
        do = form.get("do", "")
        kind: Kind = "discard" if do.startswith("discard") else "replay"
        if do not in ("replay", "discard", "mend", f"replay{PICKED}", f"discard{PICKED}"):
            raise UsageError("do must be replay, discard, mend, replay-picked or discard-picked")
        patch = Patch()
        changes: list[Change] = []
        if do == "mend":
            ids, patch, changes = await self._patched(form)
        elif do.endswith(PICKED):
            ids = form.getall("pick", [])
        else:
            await refreshed(ANSWER, self._sources.letters.rows)
            ids = [row.letter.id for row in filter_of(form).apply(self._sources.letters.rows.value)]
        if not ids:
            raise UsageError("No dead letter was selected, or none matches any more.")
        run = Run(
            secrets.token_urlsafe(6),
            self._sources.settings,
            kind=kind,
            ids=ids,
            patch=patch,
            changes=changes,
        )
        self._sources.runs.add(run)
        await asyncio.wait({run.plan()}, timeout=ANSWER if wants_json(request) else PLAN_PATIENCE)
        return self._shown(request, run)

    async def _patched(self, form: Mapping[str, str]) -> tuple[list[str], Patch, list[Change]]:
        request_id = form.get("id", "")
        letter = await self._sources.letters.find(request_id)
        platform = PLATFORMS.get(form.get("platform", ""))
        if letter is None or platform is None:
            raise UsageError("The letter is not there any more, or its platform is none.")
        patch, changes = patch_of(form, view(letter, reveal=False), platform)
        if not changes:
            raise UsageError("Nothing was changed: type a new value, or replay the letter as it is.")
        return [request_id], patch, changes

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Do what was planned."""
        form, run = await _form(request), self._run(request)
        if run.phase != "planned":
            raise UsageError("This was started already, or its plan failed: make a new one.")
        if (active := self._sources.runs.active) is not None:
            raise UsageError(f"Another run is under way ({active.stage}): wait until it ends, or cancel it.")
        why = _why(form)
        if run.kind == "discard" and form.get("count", "").replace(",", "").strip() != str(run.count):
            raise UsageError(f"Type {run.count}, the count of the letters, to remove them for good.")
        canary = CANARIES.get(form.get("canary", "none"))
        if canary is None:
            raise UsageError("canary must be one, tenth or none")
        run.start(by=_by(request), why=why, canary=canary, rate=_rate(form), ended=self._sources.expire)
        return self._shown(request, run)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End a run after what is under way."""
        run = self._run(request)
        run.cancel()
        return self._shown(request, run)

    def _run(self, request: web.Request) -> Run:
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        return run

    def _shown(self, request: web.Request, run: Run) -> web.StreamResponse:
        if wants_json(request):
            return self._pages.show_run(request, run)
        return _see(f"/runs/{run.number}")


async def _form(request: web.Request) -> MultiDict[str]:
    """The text fields of the form. Uploaded files are ignored."""
    typed = await request.post()
    return MultiDict((name, value) for name, value in typed.items() if isinstance(value, str))


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={"Location": path})


def _why(form: Mapping[str, str]) -> str:
    why = " ".join(str(form.get("why", "")).split())[:WHY_LENGTH]
    if not why:
        raise UsageError("Say why: the reason is kept in the audit list.")
    return why


def _by(request: web.Request) -> str:
    session = request.get(SESSION)
    return session.name if session is not None and session.name else whoami()


def _rate(form: Mapping[str, str]) -> float | None:
    text = form.get("rate", "").strip()
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0
    if not 0 < rate < MAX_RATE:
        raise UsageError("The rate must be a number above 0: letters a second.")
    return rate
