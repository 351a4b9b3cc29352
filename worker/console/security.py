"""What every request has to pass, the headers that every answer carries, and logging in."""

import asyncio
import ipaddress
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

from aiohttp import web

from worker.console.rendering import Renderer, local_path, see, wants_json
from worker.console.session import LIFE, SESSION, Sessions
from worker.errors import SettingsError, UsageError, WorkerError
from worker.settings import Settings

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

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
OPEN_TO_ALL = ("/login", "/static/")
CHANGES_NOTHING = frozenset({"/login", "/logout"})
NAME_LENGTH = 60
LONGEST_ANSWER = 60.0  # seconds, the time that the client takes to send its form included
FOREIGN = (
    "A change must come from a page of this console. Behind a proxy set OTT_CONSOLE_URL to the address that "
    "people use."
)
WITHOUT_PROOF = "A change wants the token: open the URL that ott-worker console printed."
FOREIGN_NAME = "This console does not answer to that host name: set OTT_CONSOLE_URL."
READ_ONLY = "This console is read-only (OTT_CONSOLE_READ_ONLY=true): it shows and changes nothing."


def check_settings(settings: Settings) -> None:
    """Raise SettingsError where the console would be open to everybody."""
    if not is_loopback(settings.console_host) and not settings.now("console_password"):
        raise SettingsError(
            f"OTT_CONSOLE_PASSWORD must be set (or OTT_CONSOLE_PASSWORD_FILE), since OTT_CONSOLE_HOST="
            f"{settings.console_host} can be reached from other machines"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Guard:
    """The middleware, and the handlers that log in and out. A page of another site can make a browser send
    requests here: so the name that it asked for is checked (DNS rebinding), and for every change where the
    request comes from."""

    def __init__(self, settings: Settings, sessions: Sessions, render: Renderer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._render = render
        self._is_local = is_loopback(settings.console_host)
        self._url = urlsplit(settings.console_url or "")
        names = [self._url.hostname or ""]
        if not self._is_local:
            names += [settings.console_host, socket.gethostname()]
        self._names = {name.lower() for name in names if name}

    def routes(self) -> Iterable[web.AbstractRouteDef]:
        """Where the handlers are."""
        return (
            web.get("/login", self.form),
            web.post("/login", self.log_in),
            web.post("/logout", self.log_out),
        )

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(LONGEST_ANSWER):
                response = self._refusal(request) or await handler(request)
        except TimeoutError:
            response = self._problem(request, 408, "That took too long.")
        except web.HTTPException as answer:
            response = answer if answer.status < 400 else self._problem(request, answer.status, answer.reason)
        except WorkerError as error:
            status = 400 if isinstance(error, UsageError) else 503
            response = self._problem(request, status, str(error))
        except Exception as error:
            # Its text may quote what was typed: where it happened is enough to find it.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            print(f"console: {type(error).__name__} in {where}", file=sys.stderr)  # noqa: T201
            response = self._problem(request, 500, "The console failed: its standard error says where.")
        for name, value in HEADERS.items():
            response.headers[name] = value
        if not self._path(request).startswith("/static/"):
            response.headers["Cache-Control"] = "no-store"
        if response.headers.get("Location", "").startswith("/"):
            response.headers["Location"] = self._url.path + response.headers["Location"]
        return response

    def _path(self, request: web.Request) -> str:
        """Without the path under which a proxy serves the console."""
        return local_path(request.path, self._settings)

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        path, sessions = self._path(request), self._sessions
        is_change = request.method not in ("GET", "HEAD") and path not in CHANGES_NOTHING
        if refused := self._not_served(request, is_change=is_change):
            return self._problem(request, *refused)
        cookie = request.cookies.get(sessions.cookie, "")
        if entered := sessions.admit(request.query.get("token", "")):
            if request.method == "GET":
                return self._enter(request, entered)
            cookie = entered
        session = sessions.read(cookie)
        if session is not None:
            request[SESSION] = session
        elif sessions.is_required and not path.startswith(OPEN_TO_ALL):
            return self._ask_for_password(request)
        elif is_change:
            return self._problem(request, 403, WITHOUT_PROOF)
        return None

    def _not_served(self, request: web.Request, *, is_change: bool) -> tuple[int, str] | None:
        """The status and text where a request is refused, whoever sent it."""
        if not self._is_own_name(request.headers.get("Host", "")):
            return 421, FOREIGN_NAME
        if request.method not in ("GET", "HEAD") and not self._is_same_origin(request):
            return 403, FOREIGN
        if request.method in ("GET", "HEAD") and _is_embedded(request):
            return 403, "Another site may not load this page."
        return (403, READ_ONLY) if is_change and self._settings.console_read_only else None

    def _enter(self, request: web.Request, entered: str) -> web.Response:
        """The same page again, without the token in its URL."""
        bare = request.rel_url.without_query_params("token").path_qs
        response = see(local_path(bare, self._settings))
        self._set_cookie(response, request, entered)
        return response

    def _is_same_origin(self, request: web.Request) -> bool:
        """Every browser says where a change comes from, by one of these headers; what says nothing is none,
        and carries nobody's cookie."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None and site != "same-origin":
            return False
        origin = request.headers.get("Origin")
        if origin is None:
            return True
        parts = urlsplit(origin)
        is_named = (parts.scheme, parts.netloc) == (self._url.scheme, self._url.netloc)
        return bool(parts.netloc) and (is_named or parts.netloc == request.headers.get("Host"))

    def _ask_for_password(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("HX-Request"):
            return web.Response(status=401, headers={"HX-Refresh": "true"})
        if wants_json(request) or request.method not in ("GET", "HEAD"):
            return self._problem(request, 401, "Log in first, at /login.")
        return see(f"/login?next={quote(local_path(request.path_qs, self._settings))}")

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
        if is_loopback(name) or name in self._names:
            return True
        # An address is no name that somebody could have pointed here.
        return not self._is_local and _address(name) is not None

    def _problem(self, request: web.Request, status: int, text: str) -> web.StreamResponse:
        if wants_json(request):
            return web.json_response({"problem": text}, status=status)
        return self._render.page(
            request,
            "problem",
            status=status,
            live=False,
            title="Not found" if status == 404 else "That did not work",
            text=text,
        )

    async def form(self, request: web.Request) -> web.Response:
        """Asks for the password."""
        return self._form(request, request.query.get("next", "/"))

    async def log_in(self, request: web.Request) -> web.Response:
        """Opens a session for the right password."""
        form = await request.post()
        following, client = _safe_path(form.get("next")), self._client(request)
        if wait := self._sessions.wait(client):
            problem = f"Too many wrong passwords: try again in {wait:.0f} seconds."
            response = self._form(request, following, 429, problem)
            response.headers["Retry-After"] = f"{wait:.0f}"
            return response
        name = " ".join(str(form.get("name", "")).split())[:NAME_LENGTH]
        cookie = self._sessions.log_in(client, name, str(form.get("password", "")))
        if cookie is None:
            return self._form(request, following, 401, "That is not the password.")
        answer = see(following)
        self._set_cookie(answer, request, cookie)
        return answer

    async def log_out(self, request: web.Request) -> web.Response:
        """Ends the session."""
        self._sessions.end(request.cookies.get(self._sessions.cookie, ""))
        answer = see("/login")
        path = self._url.path or "/"
        answer.del_cookie(self._sessions.cookie, path=path, httponly=True, samesite="Strict")
        return answer

    def _client(self, request: web.Request) -> str:
        """The client's address; a proxy that OTT_CONSOLE_URL tells of names it."""
        passed_on = request.headers.get("X-Forwarded-For", "") if self._settings.console_url else ""
        return passed_on.rpartition(",")[2].strip() or request.remote or ""

    def _form(
        self, request: web.Request, following: str, status: int = 200, problem: str = ""
    ) -> web.Response:
        return self._render.page(
            request, "login", status=status, following=_safe_path(following), problem=problem
        )

    def _set_cookie(self, response: web.Response, request: web.Request, value: str) -> None:
        """For this console alone."""
        response.set_cookie(
            self._sessions.cookie,
            value,
            max_age=LIFE,
            path=self._url.path or "/",
            httponly=True,
            samesite="Strict",
            secure=request.secure or self._url.scheme == "https",
        )


def _is_embedded(request: web.Request) -> bool:
    """Whether a page of another site loads this as a part of itself. A link may lead here."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    is_link = request.headers.get("Sec-Fetch-Mode") == "navigate"
    return not (is_link and request.headers.get("Sec-Fetch-Dest", "document") == "document")


def _safe_path(path: object) -> str:
    """A path of this console, or its first page."""
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//"):
        return "/"
    return path if "\\" not in path and path.isprintable() else "/"
