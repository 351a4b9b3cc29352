"""What changes something: pause and resume, and runs of a replay or a discard. By POST alone, and with a
reason."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from aiohttp import web
from multidict import MultiDict

from worker.broker.control_stream import publish_order, whoami
from worker.console.kept import refreshed
from worker.console.letters import filter_of
from worker.console.pages import Pages
from worker.console.patch_form import Change, patch_of
from worker.console.rendering import wants_json
from worker.console.run import ConsoleRun
from worker.console.session import SESSION
from worker.console.sources import ANSWER, Sources
from worker.contract.control import Order
from worker.contract.platforms import PLATFORMS
from worker.dead_letters.patch import Patch, Patches
from worker.dead_letters.plan import Wish
from worker.dead_letters.run import CANARIES
from worker.dead_letters.selection import Selection
from worker.dead_letters.view import view
from worker.errors import UsageError

PLAN_PATIENCE = 1.5  # seconds; a plan that takes longer is shown while it is made
PICKED = "-picked"
ACTIONS = frozenset({"replay", "discard", "correct", f"replay{PICKED}", f"discard{PICKED}"})
MAX_RATE = 1e6  # letters a second
WHY_LENGTH = 200


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
        """Make a plan for the letters of the form: those picked, or all that its page showed."""
        form = await _form(request)
        do = form.get("do", "")
        if do not in ACTIONS:
            raise UsageError(f"do must be one of {', '.join(sorted(ACTIONS))}")
        patch = Patch()
        changes: list[Change] = []
        before = self._sources.runs.get(form.get("again", ""))
        if before is not None:
            return await self._plan(
                request, replace(before.run.wish, force=True), before.asked, before.changes
            )
        if do.endswith(PICKED):
            keys = form.getall("pick", [])
        elif letter := form.get("letter", ""):
            keys = [letter]
        else:
            await refreshed(ANSWER, self._sources.letters.rows)
            keys = self._sources.letters.shown(filter_of(form), form.get("version", ""))
        if do == "correct":
            patch, changes = await self._patched(form)
        if not keys:
            raise UsageError("No dead letter was selected, or none matches any more.")
        wish = Wish(
            "discard" if do.startswith("discard") else "replay",
            Selection(ids=frozenset(keys)),
            Patches(patch),
            force="force" in form,
            same_for_all="same_for_all" in form,
        )
        return await self._plan(request, wish, len(keys), changes)

    async def _plan(
        self, request: web.Request, wish: Wish, count: int, changes: Sequence[Change]
    ) -> web.StreamResponse:
        run = ConsoleRun(self._sources.settings, wish, count, changes)
        self._sources.runs.add(run)
        await asyncio.wait({run.plan()}, timeout=ANSWER if wants_json(request) else PLAN_PATIENCE)
        return self._shown(request, run)

    async def _patched(self, form: Mapping[str, str]) -> tuple[Patch, list[Change]]:
        platform = PLATFORMS.get(form.get("platform", ""))
        if platform is None:
            raise UsageError("The platform is none.")
        if not (key := form.get("letter", "")):
            return patch_of(form, None, platform)
        letter = await self._sources.letters.find(key)
        if letter is None:
            raise UsageError("The letter is not there any more.")
        return patch_of(form, view(letter, reveal=False), platform)

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Do what was planned."""
        form, run = await _form(request), self._run(request)
        if run.phase != "planned":
            raise UsageError("This was started already, or its plan failed: make a new one.")
        if (active := self._sources.runs.active) is not None:
            raise UsageError(
                f"Another run is under way ({active.run.stage}): wait until it ends, or cancel it."
            )
        why = _why(form)
        if run.refusal:
            raise UsageError(run.refusal)
        if run.kind == "discard" and form.get("count", "").replace(",", "").strip() != str(run.count):
            raise UsageError(f"Type {run.count}, the count of the letters, to remove them for good.")
        canary = next((each for each in CANARIES if each == form.get("canary", "none")), None)
        if canary is None:
            raise UsageError(f"canary must be one of {', '.join(CANARIES)}")
        run.start(by=_by(request), why=why, canary=canary, rate=_rate(form), ended=self._sources.expire)
        return self._shown(request, run)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """End a run after what is under way."""
        run = self._run(request)
        run.cancel()
        return self._shown(request, run)

    def _run(self, request: web.Request) -> ConsoleRun:
        run = self._sources.runs.get(request.match_info["number"])
        if run is None:
            raise web.HTTPNotFound(reason="This run is not known any more")
        return run

    def _shown(self, request: web.Request, run: ConsoleRun) -> web.StreamResponse:
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
