"""What every request has to pass, and the headers that every answer carries."""

import ipaddress
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from aiohttp import web

from worker.console.rendering import Renderer, wants_json
from worker.console.session import COOKIE, SESSION, Sessions
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
OPEN_TO_ALL = ("/login", "/theme", "/static/")
CHANGES_NOTHING = frozenset({"/login", "/logout", "/theme"})
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
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """The middleware. A page of another site can make a browser send requests here: so the name that it asked
    for is checked (DNS rebinding), and for every change where the request comes from."""

    def __init__(self, settings: Settings, sessions: Sessions, render: Renderer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._render = render
        self._is_local = is_loopback(settings.console_host)
        names = (settings.console_allowed_hosts or "").split(",")
        if not self._is_local:
            names += [settings.console_host, socket.gethostname()]
        self._names = {name.strip().lower() for name in names if name.strip()}

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = self._refusal(request) or await handler(request)
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
        if not request.path.startswith("/static/"):
            response.headers["Cache-Control"] = "no-store"
        return response

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        if not self._is_own_name(request.headers.get("Host", "")):
            return self._problem(
                request,
                421,
                "This console does not answer to that host name: add it to OTT_CONSOLE_ALLOWED_HOSTS.",
            )
        if request.method not in ("GET", "HEAD"):
            if not _is_same_origin(request):
                return self._problem(request, 403, "A change must come from a page of this console.")
            if self._settings.console_read_only and request.path not in CHANGES_NOTHING:
                return self._problem(request, 403, READ_ONLY)
        if not self._sessions.is_required or request.path.startswith(OPEN_TO_ALL):
            return None
        session = self._sessions.read(request.cookies.get(COOKIE, ""))
        if session is not None:
            request[SESSION] = session
            return None
        return self._ask_for_password(request)

    def _ask_for_password(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("HX-Request"):
            return web.Response(status=401, headers={"HX-Refresh": "true"})
        if wants_json(request) or request.method not in ("GET", "HEAD"):
            return self._problem(request, 401, "Log in first, at /login.")
        return web.Response(status=303, headers={"Location": f"/login?next={quote(request.path_qs)}"})

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
        if is_loopback(name) or name in self._names:
            return True
        # An address is no name that somebody could have pointed here.
        return not self._is_local and _is_address(name)

    def _problem(self, request: web.Request, status: int, text: str) -> web.StreamResponse:
        if wants_json(request):
            return web.json_response({"problem": text}, status=status)
        return self._render.page(
            request, "problem.html", status=status, live=False, title=str(status), text=text
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_same_origin(request: web.Request) -> bool:
    """Every browser says where a change comes from, by one of these headers; what says nothing is none, and
    carries nobody's cookie."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site != "same-origin":
        return False
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("Host")


def safe_path(path: str) -> str:
    """A path of this console, or its first page."""
    is_path = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if is_path else "/"
