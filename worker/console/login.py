"""Logging in and out, and the choice of a theme."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from worker.console.rendering import THEME_COOKIE, THEMES, Renderer
from worker.console.security import client_of, safe_path, set_cookie
from worker.console.session import Sessions
from worker.settings import Settings

YEAR = 365 * 24 * 3600  # seconds
NAME_LENGTH = 60


class Login:
    """The handlers."""

    def __init__(self, settings: Settings, sessions: Sessions, render: Renderer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._render = render

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where they are."""
        return (
            web.get("/login", self.form),
            web.post("/login", self.log_in),
            web.post("/logout", self.log_out),
            web.post("/theme", self.choose_theme),
        )

    async def form(self, request: web.Request) -> web.Response:
        """Asks for the password."""
        return self._form(request, request.query.get("next", "/"))

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """Opens a session for the right password."""
        form = await request.post()
        following = safe_path(str(form.get("next", "/")))
        client = client_of(request, self._settings)
        if wait := self._sessions.wait(client):
            response = self._form(
                request, following, 429, f"Too many wrong passwords: try again in {wait:.0f} seconds."
            )
            response.headers["Retry-After"] = f"{wait:.0f}"
            return response
        name = " ".join(str(form.get("name", "")).split())[:NAME_LENGTH]
        cookie = self._sessions.log_in(client, name, str(form.get("password", "")))
        if cookie is None:
            return self._form(request, following, 401, "That is not the password.")
        answer = web.Response(status=303, headers={"Location": following})
        set_cookie(answer, request, self._settings, self._sessions.cookie, cookie)
        return answer

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """Ends the session."""
        self._sessions.end(request.cookies.get(self._sessions.cookie, ""))
        answer = web.Response(status=303, headers={"Location": "/login"})
        path = urlsplit(self._settings.console_url or "").path or "/"
        answer.del_cookie(self._sessions.cookie, path=path, httponly=True, samesite="Strict")
        return answer

    async def choose_theme(self, request: web.Request) -> web.StreamResponse:
        """Keeps the theme in a cookie: so no page flashes in the wrong one, and it needs no script."""
        form = await request.post()
        theme = str(form.get("theme", ""))
        answer = web.Response(status=303, headers={"Location": safe_path(str(form.get("next", "/")))})
        answer.set_cookie(
            THEME_COOKIE, theme if theme in THEMES else THEMES[0], max_age=YEAR, samesite="Strict"
        )
        return answer

    def _form(
        self, request: web.Request, following: str, status: int = 200, problem: str = ""
    ) -> web.Response:
        return self._render.page(
            request, "login.html", status=status, following=safe_path(following), problem=problem
        )
