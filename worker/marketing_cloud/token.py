"""Access tokens by client credentials: one for each account, shared, refreshed ahead (contract §6)."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from worker.errors import WorkerError
from worker.events import TokenResult
from worker.marketing_cloud.answer import read_answer
from worker.marketing_cloud.http import Http, NoAnswer, to_json
from worker.settings import Settings

REFRESH_AHEAD = 120.0  # seconds before a token's end that the next one is fetched
REFRESH_SHARE = 0.25  # of a short token's life, instead
REFRESH_PAUSE = 30.0  # seconds between attempts to refresh a token that still works
CREDENTIALS_CHECK_KEPT = 300.0  # seconds for which a token that was given proves the credentials
REFUSAL_KEPT = 60.0  # seconds that a refused account is not asked for again
ACCOUNTS_KEPT = 10_000
DEFAULT_LIFE = 1080.0  # seconds
REST_DOMAIN = ".marketingcloudapis.com"


class TokenTrouble(WorkerError):
    """No token for now: the endpoint is down, or refuses the credentials. An outage. `retry_after` is the
    endpoint's own hint, in seconds, or None."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class AccountRefused(WorkerError):
    """Marketing Cloud gives no token for this one account, and others get theirs."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and where it is good for. Never shown: it has no text form."""

    value: str
    rest_url: str
    asked_at: float  # monotonic seconds
    refresh_at: float
    expires_at: float

    def __repr__(self) -> str:
        return "Token(***)"


@dataclass(slots=True)
class _Account:
    token: Token | None = None
    fetching: "asyncio.Task[Token] | None" = None
    next_refresh: float = 0.0
    refused_until: float = 0.0
    refusal: str = ""
    trouble: str = ""


class Tokens:
    """The tokens of all accounts. `None` is the default account."""

    def __init__(
        self, settings: Settings, http: Http, on_fetch: Callable[[TokenResult], None] = lambda result: None
    ) -> None:
        self._settings = settings
        self._http = http
        self._on_fetch = on_fetch
        self._accounts: dict[str | None, _Account] = {}
        self._has_checked_credentials = False

    @property
    def had(self) -> bool:
        """Whether the default account holds a token that is still good."""
        account = self._accounts.get(self._key(None))
        return account is not None and _is_good(account.token)

    @property
    def trouble(self) -> str:
        """Why the default account's last token request brought none, `""` where it did or none was made."""
        account = self._accounts.get(self._key(None))
        return "" if account is None else account.trouble

    async def get(self, account: str | None) -> Token:
        """A token that is good now. One caller fetches while the others wait, or use the old one as long
        as it lasts. Raises TokenTrouble or AccountRefused."""
        key = self._key(account)
        held = self._account(key)
        token, now = held.token, time.monotonic()
        if token is not None and now < token.expires_at:
            if now >= token.refresh_at and now >= held.next_refresh and held.fetching is None:
                held.next_refresh = now + REFRESH_PAUSE
                self._fetch_in_background(key, held)
            return token
        if now < held.refused_until:
            raise AccountRefused(held.refusal)
        task = held.fetching or self._fetch_in_background(key, held)
        return await asyncio.shield(task)

    async def keep_default_token(self) -> None:
        """Fetch the default account's first token, and again while none is given, until cancelled: so wrong
        credentials are known before a request comes, and known to be mended while none comes."""
        while True:
            if not self._has_checked_credentials or self.trouble:
                with contextlib.suppress(TokenTrouble):
                    await self.get(None)
                    self._has_checked_credentials = True
            await asyncio.sleep(REFRESH_PAUSE)

    def drop(self, account: str | None, token: Token) -> None:
        """Forget a token that Marketing Cloud turned down, unless it has been replaced already."""
        held = self._account(self._key(account))
        if held.token is token:
            held.token = None

    def refuse(self, account: str | None, why: str) -> None:
        """Ask for no token of an account for a while, because its tokens are turned down."""
        held = self._account(self._key(account))
        held.token = None
        held.refused_until = time.monotonic() + REFUSAL_KEPT
        held.refusal = f"Marketing Cloud turns down the tokens of this account: {why}"

    async def close(self) -> None:
        """End what is under way."""
        tasks = [a.fetching for a in self._accounts.values() if a.fetching is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def is_default(self, account: str | None) -> bool:
        """Whether `account` is the default business unit."""
        return self._key(account) == self._settings.mc_account_id

    def _key(self, account: str | None) -> str | None:
        return account or self._settings.mc_account_id

    def _account(self, key: str | None) -> _Account:
        held = self._accounts.get(key)
        if held is None:
            if len(self._accounts) >= ACCOUNTS_KEPT:
                self._forget_one()
            held = self._accounts[key] = _Account()
        return held

    def _forget_one(self) -> None:
        for key, held in self._accounts.items():
            if held.fetching is None and not self.is_default(key):
                del self._accounts[key]
                return

    def _fetch_in_background(self, key: str | None, held: _Account) -> "asyncio.Task[Token]":
        async def fetch() -> Token:
            try:
                held.token = await self._fetch_for(key, held)
                return held.token
            finally:
                held.fetching = None

        held.fetching = asyncio.create_task(fetch(), name="token")
        held.fetching.add_done_callback(_retrieve)
        return held.fetching

    async def _fetch_for(self, key: str | None, held: _Account) -> Token:
        try:
            token = await self._fetch(key)
        except _Refused as refused:
            self._on_fetch("refused")
            held.trouble = f"the token was refused: {refused}"
            if self.is_default(key):
                raise TokenTrouble(held.trouble) from None
            # Bad credentials look the same as a bad account. Where the default account gets a token
            # with them, it is the account.
            await self._check_credentials()
            held.refused_until = time.monotonic() + REFUSAL_KEPT
            held.refusal = f"Marketing Cloud gives no token for this account: {refused}"
            raise AccountRefused(held.refusal) from None
        except TokenTrouble as error:
            self._on_fetch("failed")
            held.trouble = str(error)
            raise
        self._on_fetch("ok")
        held.trouble = ""
        return token

    async def _check_credentials(self) -> None:
        """Return if the default account has been given a token lately. Raises TokenTrouble."""
        key = self._key(None)
        held = self._account(key)
        if held.token is None or time.monotonic() > held.token.asked_at + CREDENTIALS_CHECK_KEPT:
            await asyncio.shield(held.fetching or self._fetch_in_background(key, held))

    async def _fetch(self, key: str | None) -> Token:
        settings = self._settings
        request = {
            "grant_type": "client_credentials",
            "client_id": settings.now("mc_client_id"),
            "client_secret": settings.now("mc_client_secret"),
        }
        if key is not None:
            request["account_id"] = key
        asked_at = time.monotonic()
        try:
            response = await self._http.post(
                f"{settings.auth_url}/v2/token", to_json(request), {"Content-Type": "application/json"}
            )
        except NoAnswer as error:
            raise TokenTrouble(f"the token endpoint: {error}") from None
        status = response.status
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise _Refused(_refusal(status, response.body))
        answer = read_answer(response, datetime.now(UTC))
        if answer.is_page:
            raise TokenTrouble(f"the token endpoint answered {status} with a web page (text/html)")
        if not 200 <= status < 300:
            raise TokenTrouble(f"the token endpoint answered {status}", answer.retry_after)
        return self._read(response.body, asked_at)

    def _read(self, body: bytes, asked_at: float) -> Token:
        try:
            document = json.loads(body)
            value = document["access_token"]
            life = document.get("expires_in")
            life = DEFAULT_LIFE if life is None else float(life)
            instance = document.get("rest_instance_url")
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise TokenTrouble("the token endpoint's answer is not a token") from None
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
            raise TokenTrouble("the token endpoint's answer is not a token")
        if not 0 < life < math.inf:  # NaN neither: each request would fetch a token of its own
            life = DEFAULT_LIFE
        rest_url = self._settings.rest_url or _instance_url(instance)
        ahead = min(REFRESH_AHEAD, life * REFRESH_SHARE)
        return Token(value, rest_url, asked_at, asked_at + life - ahead, asked_at + life)


class _Refused(Exception):
    """The token endpoint answered 4xx."""


def _is_good(token: Token | None) -> bool:
    return token is not None and time.monotonic() < token.expires_at


def _retrieve(task: "asyncio.Task[Token]") -> None:
    if not task.cancelled():
        task.exception()


def _refusal(status: int, body: bytes) -> str:
    """Marketing Cloud's own word for it, which is one of OAuth's error codes, or the status."""
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError, RecursionError):
        error = None
    known = {"invalid_client", "invalid_request", "invalid_grant", "unauthorized_client", "invalid_scope"}
    return f"{status} {error}" if error in known else str(status)


def _instance_url(value: object) -> str:
    """`rest_instance_url`, with or without a scheme, and only below Marketing Cloud's own domain."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parts = urlsplit(value if "://" in value else f"https://{value}")
            host = parts.hostname or ""
            if parts.scheme == "https" and host.endswith(REST_DOMAIN) and parts.netloc.lower() == host:
                return f"https://{host}"
    raise TokenTrouble("the token names no REST URL under marketingcloudapis.com: set OTT_MC_REST_URL")
