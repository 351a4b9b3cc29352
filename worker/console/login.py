"""Logging in and out, and the choice of a theme."""

from collections.abc import Iterable

from aiohttp import web

from worker.console.rendering import THEME_COOKIE, THEMES, Renderer
from worker.console.security import safe_path
from worker.console.session import COOKIE, LIFE, Sessions

YEAR = 365 * 24 * 3600  # seconds
NAME_LENGTH = 60


class Login:
    """The handlers."""

    def __init__(self, sessions: Sessions, render: Renderer) -> None:
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
        if wait := self._sessions.wait():
            response = self._form(
                request, following, 429, f"Too many wrong passwords: try again in {wait:.0f} seconds."
            )
            response.headers["Retry-After"] = f"{wait:.0f}"
            return response
        name = " ".join(str(form.get("name", "")).split())[:NAME_LENGTH]
        cookie = self._sessions.open(name, str(form.get("password", "")))
        if cookie is None:
            return self._form(request, following, 401, "That is not the password.")
        answer = web.Response(status=303, headers={"Location": following})
        answer.set_cookie(
            COOKIE, cookie, max_age=LIFE, httponly=True, samesite="Strict", secure=request.secure
        )
        return answer

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        """Forgets the session."""
        answer = web.Response(status=303, headers={"Location": "/login"})
        answer.del_cookie(COOKIE, httponly=True, samesite="Strict")
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
