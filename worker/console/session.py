"""Who may look where a password is set: signed cookies, and a limit on guesses."""

import base64
import hashlib
import hmac
import secrets
import time
from collections import deque
from dataclasses import dataclass

from aiohttp import web

from worker.settings import Settings

COOKIE = "ott-console"
LIFE = 12 * 3600  # seconds that a session lasts
GUESSES = 10  # wrong passwords
GUESS_WINDOW = 60.0  # seconds in which these may be given, by everybody together


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who gave the password. `name` is what they call themselves."""

    name: str


SESSION: web.RequestKey[Session] = web.RequestKey("session", Session)


class Sessions:
    """Sessions live in their cookies. They end with the process, and when the password is changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = secrets.token_bytes(32)
        self._wrong: deque[float] = deque()

    @property
    def is_required(self) -> bool:
        """Whether a password is set."""
        return bool(self._password)

    @property
    def _password(self) -> str:
        return self._settings.now("console_password")

    def wait(self) -> float:
        """Seconds until another password may be tried; 0 where one may be now."""
        now = time.monotonic()
        while self._wrong and now - self._wrong[0] > GUESS_WINDOW:
            self._wrong.popleft()
        return GUESS_WINDOW - (now - self._wrong[0]) if len(self._wrong) >= GUESSES else 0.0

    def open(self, name: str, password: str) -> str | None:
        """The value of a cookie, or None for a wrong password."""
        if not hmac.compare_digest(_digest(password), _digest(self._password)):
            self._wrong.append(time.monotonic())
            return None
        encoded = base64.urlsafe_b64encode(name.encode(errors="replace")).decode()
        text = f"{int(time.time()) + LIFE}.{encoded}"
        return f"{text}.{self._sign(text)}"

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie, None where it is not ours or has ended."""
        text, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return None
        ends, _, encoded = text.partition(".")
        if int(ends) < time.time():
            return None
        return Session(base64.urlsafe_b64decode(encoded).decode())

    def _sign(self, text: str) -> str:
        key = hmac.digest(self._key, self._password.encode(), "sha256")
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _digest(password: str) -> bytes:
    # Of equal length, whatever was typed: so the time of the comparison tells nothing.
    return hashlib.sha256(password.encode(errors="replace")).digest()
