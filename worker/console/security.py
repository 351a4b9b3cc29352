"""Checks of every request, headers of every answer, and sessions.

With a password, every user must log in. Without one (only on loopback), every user may look, and a change
requires the token in the URL that the console printed, so that no other user or program on the machine can
change anything."""

import asyncio
import hashlib
import hmac
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from aiohttp import web

from worker.console.rendering import SESSION, Renderer, local_path, wants_json
from worker.errors import SettingsError, UsageError, WorkerError
from worker.serving import address_of, host_name
from worker.settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Server": "ott-worker",
}
LOOKS = ("GET", "HEAD")
OPEN_TO_ALL = ("/login", "/static/")
CHANGES_NOTHING = frozenset({"/login", "/logout"})
NAME_LENGTH = 60
LONGEST_ANSWER = 60.0  # seconds, including the time in which the client sends its form
SESSION_LIFE = 12 * 3600  # seconds
SESSIONS_KEPT = 1000
GUESSES = 10  # wrong passwords
GUESS_WINDOW = 60.0  # seconds in which one client may enter so many
CLIENTS_KEPT = 10_000
FOREIGN = (
    "A change must come from a page of this console. Behind a proxy, set OTT_CONSOLE_URL to the address that "
    "users open."
)
WITHOUT_PROOF = "A change requires the token: open the URL that ott-worker console printed."
FOREIGN_NAME = "This host name is not configured: set OTT_CONSOLE_URL."
READ_ONLY = "This console is read-only (OTT_CONSOLE_READ_ONLY=true)."


class Guard:
    """The middleware, and the handlers of login and logout. A page of another site can make a browser send
    requests here. So the host name is checked (DNS rebinding), and for every change its origin. Sessions end
    with the process, at logout, and when the password changes. Raises SettingsError if the console would be
    open to other machines without a password."""

    def __init__(self, settings: Settings, render: Renderer) -> None:
        self._settings = settings
        self._render = render
        self._is_local = is_loopback(settings.console_host)
        self._url = urlsplit(settings.console_url or "")
        if not self._is_local and not self.wants_password:
            raise SettingsError(
                f"OTT_CONSOLE_PASSWORD must be set (or OTT_CONSOLE_PASSWORD_FILE), because OTT_CONSOLE_HOST="
                f"{settings.console_host} can be reached from other machines"
            )
        names = [self._url.hostname or ""]
        if not self._is_local:
            names += [settings.console_host, socket.gethostname()]
        self._names = {name.lower() for name in names if name}
        self._sessions: dict[str, tuple[str, float]] = {}  # by cookie: the name, when the session ends
        self._opened_by = self._password
        self._guesses: dict[str, tuple[float, int]] = {}  # by client: the first wrong password, and how many
        self.token = secrets.token_urlsafe(24)
        # Browsers share cookies between the ports of a host, so each console has its own name.
        identity = f"{settings.prefix}\0{self._url.path}"
        self.cookie = f"ott-console-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    @property
    def wants_password(self) -> bool:
        """Whether a password is set."""
        return bool(self._password)

    @property
    def _password(self) -> str:
        return self._settings.now("console_password")

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """The routes of the handlers."""
        return (
            web.get("/login", self.form),
            web.post("/login", self.log_in),
            web.post("/logout", self.log_out),
        )

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = local_path(request.path, self._settings)
        try:
            async with asyncio.timeout(LONGEST_ANSWER):
                self._refuse_foreign(request)
                self._admit(request, path)
                response = await handler(request)
        except web.HTTPRedirection as redirection:
            response = redirection
        except Exception as error:
            status, text = _status_of(error)
            response = self._render.answer(request, "problem", {"problem": text}, status=status, live=False)
        response.headers.update(HEADERS)
        if not path.startswith("/static/"):
            response.headers["Cache-Control"] = "no-store"
        if response.status == 401 and "HX-Request" in request.headers:
            response.headers["HX-Refresh"] = "true"
        if response.headers.get("Location", "").startswith("/"):
            response.headers["Location"] = self._url.path + response.headers["Location"]
        if isinstance(response, web.HTTPException):
            raise response
        return response

    def _refuse_foreign(self, request: web.Request) -> None:
        """Raises HTTPException for a request that a page of another site may have sent."""
        is_look = request.method in LOOKS
        if not self._is_own_name(host_name(request.headers.get("Host", ""))):
            raise web.HTTPMisdirectedRequest(reason=FOREIGN_NAME)
        if is_look and _is_embedded(request):
            raise web.HTTPForbidden(reason="Another site may not load this page.")
        if not is_look and not self._is_same_origin(request):
            raise web.HTTPForbidden(reason=FOREIGN)

    def _admit(self, request: web.Request, path: str) -> None:
        """Raises HTTPException if the client is not permitted, or must log in first."""
        is_look = request.method in LOOKS
        is_change = not is_look and path not in CHANGES_NOTHING
        if is_change and self._settings.console_read_only:
            raise web.HTTPForbidden(reason=READ_ONLY)
        cookie = request.cookies.get(self.cookie, "")
        if not self.wants_password and _is_equal(request.query.get("token", ""), self.token):
            cookie = self._begin_session("")
            if is_look:  # redirect to the same page without the token in its URL
                bare = request.rel_url.without_query_params("token").path_qs
                raise self._entered(request, local_path(bare, self._settings), cookie)
        if (name := self._name_of(cookie)) is not None:
            request[SESSION] = name
        elif self.wants_password and not path.startswith(OPEN_TO_ALL):
            if wants_json(request) or not is_look or "HX-Request" in request.headers:
                raise web.HTTPUnauthorized(reason="Log in first, at /login.")
            raise web.HTTPSeeOther(f"/login?next={quote(local_path(request.path_qs, self._settings))}")
        elif is_change:
            raise web.HTTPForbidden(reason=WITHOUT_PROOF)

    def _is_own_name(self, name: str) -> bool:
        if is_loopback(name) or name in self._names:
            return True
        # DNS rebinding needs a name; an address is safe.
        return not self._is_local and address_of(name) is not None

    def _is_same_origin(self, request: web.Request) -> bool:
        """Whether a change comes from this console. Every browser sends one of these headers; a client
        without them is not a browser, and has no user's cookie."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            return False
        origin = request.headers.get("Origin")
        if origin is None:
            return True
        parts = urlsplit(origin)
        is_named = (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)
        return bool(parts.netloc) and (is_named or parts.netloc == request.headers.get("Host"))

    async def form(self, request: web.Request) -> web.Response:
        """Show the login form."""
        return self._form(request, request.query.get("next", "/"))

    async def log_in(self, request: web.Request) -> web.Response:
        """Begin a session if the password is right."""
        form = await request.post()
        following, now = str(form.get("next", "/")), time.monotonic()
        # Behind a proxy (OTT_CONSOLE_URL), the client's address is in this header.
        passed_on = request.headers.get("X-Forwarded-For", "") if self._settings.console_url else ""
        client = passed_on.rpartition(",")[2].strip() or request.remote or ""
        since, guesses = self._guesses.pop(client, (now, 0))
        if now - since > GUESS_WINDOW:
            since, guesses = now, 0
        if guesses >= GUESSES:
            self._guesses[client] = since, guesses
            wait = f"{since + GUESS_WINDOW - now:.0f}"
            problem = f"Too many wrong passwords: try again in {wait} seconds."
            response = self._form(request, following, 429, problem)
            response.headers["Retry-After"] = wait
            return response
        # Without a configured password, an empty one must not replace the token.
        if not self.wants_password or not _is_equal(str(form.get("password", "")), self._password):
            _keep(self._guesses, client, (since, guesses + 1), CLIENTS_KEPT)
            return self._form(request, following, 401, "The password is wrong.")
        name = " ".join(str(form.get("name", "")).split())[:NAME_LENGTH]
        raise self._entered(request, _safe_path(following), self._begin_session(name))

    async def log_out(self, request: web.Request) -> web.Response:
        """End the session, in all windows."""
        self._sessions.pop(request.cookies.get(self.cookie, ""), None)
        answer = web.HTTPSeeOther("/login")
        answer.del_cookie(self.cookie, path=self._url.path or "/", httponly=True, samesite="Strict")
        raise answer

    def _form(
        self, request: web.Request, following: str, status: int = 200, problem: str = ""
    ) -> web.Response:
        document = {"following": _safe_path(following), "problem": problem}
        return self._render.answer(request, "login", document, status=status)

    def _begin_session(self, name: str) -> str:
        """Begin a session, and return its cookie."""
        cookie = secrets.token_urlsafe(32)
        _keep(self._sessions, cookie, (name, time.monotonic() + SESSION_LIFE), SESSIONS_KEPT)
        return cookie

    def _name_of(self, cookie: str) -> str | None:
        """The name of the session's user; None if there is no such session, or it has ended."""
        if self._opened_by != self._password:
            self._sessions.clear()
            self._opened_by = self._password
        name, ends = self._sessions.get(cookie, (None, 0.0))
        return name if ends > time.monotonic() else None

    def _entered(self, request: web.Request, path: str, cookie: str) -> web.HTTPSeeOther:
        """Redirect to the path, and set the cookie for this console."""
        response = web.HTTPSeeOther(path)
        response.set_cookie(
            self.cookie,
            cookie,
            max_age=SESSION_LIFE,
            path=self._url.path or "/",
            httponly=True,
            samesite="Strict",
            secure=request.secure or self._url.scheme == "https",
        )
        return response


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    address = address_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _status_of(error: Exception) -> tuple[int, str]:
    """The HTTP status and the text for an error."""
    match error:
        case web.HTTPException():
            return error.status, error.reason
        case UsageError():
            return 400, str(error)
        case WorkerError():
            return 503, str(error)
        case TimeoutError():
            return 408, "The request took too long."
    # Print only the position: the error's text may quote user input.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    print(f"console: {type(error).__name__} in {where}", file=sys.stderr)  # noqa: T201
    return 500, "The console failed: see its standard error."


def _is_embedded(request: web.Request) -> bool:
    """Whether a page of another site embeds this. A link from it is allowed."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    is_link = request.headers.get("Sec-Fetch-Mode") == "navigate"
    return not (is_link and request.headers.get("Sec-Fetch-Dest", "document") == "document")


def _safe_path(path: str) -> str:
    """The path if it is one of this console, else `/`."""
    is_local = path.startswith("/") and not path.startswith("//")
    return path if is_local and "\\" not in path and path.isprintable() else "/"


def _keep(kept: dict[str, T], key: str, value: T, most: int) -> None:
    """Keep the value, and drop the oldest if there are more than `most`."""
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]


def _is_equal(entered: str, expected: str) -> bool:
    return hmac.compare_digest(_digest(entered), _digest(expected))


def _digest(text: str) -> bytes:
    # Of equal length, so that the time of the comparison reveals nothing.
    return hashlib.sha256(text.encode(errors="replace")).digest()
