"""Who may do what: sessions, kept by the console, and a limit on guesses for each client.

With a password everybody logs in. Without one, on loopback, everybody may look, and a change wants the token
of the URL that the console printed: so no other program of this machine changes anything.
"""

import hashlib
import hmac
import secrets
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from worker.settings import Settings

LIFE = 12 * 3600  # seconds that a session lasts
MOST = 1000  # sessions
GUESSES = 10  # wrong passwords
GUESS_WINDOW = 60.0  # seconds in which one client may give these
CLIENTS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who gave the password or the token. `name` is what they call themselves."""

    name: str
    ends: float
    proof: bytes  # of the password that was given


SESSION: web.RequestKey[Session] = web.RequestKey("session", Session)


class Sessions:
    """They end with the process, when somebody logs out, and when the password is changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, Session] = {}
        self._wrong: dict[str, deque[float]] = {}
        self.token = secrets.token_urlsafe(24)
        # Ports do not keep the cookies of two consoles on one host apart.
        place = f"{settings.prefix}\0{urlsplit(settings.console_url or '').path}"
        self.cookie = f"ott-console-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @property
    def is_required(self) -> bool:
        """Whether a password is set."""
        return bool(self._password)

    @property
    def _password(self) -> str:
        return self._settings.now("console_password")

    def wait(self, client: str) -> float:
        """Seconds until this client may try another password; 0 where it may now."""
        now, wrong = time.monotonic(), self._wrong.get(client, deque())
        while wrong and now - wrong[0] > GUESS_WINDOW:
            wrong.popleft()
        return GUESS_WINDOW - (now - wrong[0]) if len(wrong) >= GUESSES else 0.0

    def log_in(self, client: str, name: str, password: str) -> str | None:
        """The value of a cookie, or None for a wrong password."""
        if not hmac.compare_digest(_digest(password), _digest(self._password)):
            if client not in self._wrong and len(self._wrong) >= CLIENTS_KEPT:
                del self._wrong[next(iter(self._wrong))]
            self._wrong.setdefault(client, deque(maxlen=GUESSES)).append(time.monotonic())
            return None
        return self._begin(name)

    def admit(self, token: str) -> str | None:
        """The value of a cookie for the token of the printed URL, or None."""
        is_right = not self.is_required and hmac.compare_digest(_digest(token), _digest(self.token))
        return self._begin("") if is_right else None

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie, None where there is none or it has ended."""
        session = self._open.get(cookie)
        if session is None or (session.ends > time.monotonic() and session.proof == _digest(self._password)):
            return session
        del self._open[cookie]
        return None

    def end(self, cookie: str) -> None:
        """Log out, everywhere."""
        self._open.pop(cookie, None)

    def _begin(self, name: str) -> str:
        while len(self._open) >= MOST:
            del self._open[next(iter(self._open))]
        cookie = secrets.token_urlsafe(32)
        self._open[cookie] = Session(name, time.monotonic() + LIFE, _digest(self._password))
        return cookie


def _digest(password: str) -> bytes:
    # Of equal length, whatever was typed: so the time of the comparison tells nothing.
    return hashlib.sha256(password.encode(errors="replace")).digest()
