"""The accounts (business units) and their tokens: one shared token each, refreshed ahead (contract §6).

A failure of the default account is an outage. A failure of another account concerns that account alone, if
the default account can still obtain a token afterwards."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime

from aiolimiter import AsyncLimiter

from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.marketing_cloud.http import Http, NoAnswer
from worker.marketing_cloud.token import (
    AccountRefused,
    AccountsCrowded,
    AccountTrouble,
    Token,
    TokenTrouble,
    read_token,
)
from worker.settings import Settings

REFRESH_PAUSE = 30.0  # seconds between attempts to refresh a valid token
REFUSAL_KEPT = 60.0  # seconds without a token request after an account was refused
SCOPE_PAUSE = 60.0  # seconds between drops of a token because a scope may have been granted since
ACCOUNTS_KEPT = 10_000
# The share of the prefetch that may wait for tokens of accounts other than the default. Their token requests
# are limited, so many accounts at once could fill the prefetch and hold up all others.
MAY_WAIT = 1 / 4
TOKEN_REQUESTS = (20, 20.0)  # for accounts other than the default: so many in so many seconds
CROWDED = "Too many business units needed their first access token at once: replay this request later"
CHECK_KEPT = 60.0  # seconds for which a token of the default account proves that the credentials work
CHECKS = (
    4,
    60.0,
)  # of the credentials, by tokens of the default account: so many in so many seconds


@dataclass(slots=True, eq=False)
class Account:
    """One account, its token and its failures."""

    id: str | None
    token: Token | None = None
    fetching: "asyncio.Task[Token] | None" = None
    is_queued: bool = False  # its token request waits for the limit
    next_refresh: float = 0.0
    refusal: str = ""
    refused_until: float = 0.0
    trouble: str = ""  # why the last token request failed
    trouble_since: float | None = None
    refused_since: datetime | None = None  # while Marketing Cloud refuses it
    scope_dropped_at: float = -SCOPE_PAUSE

    @property
    def has_token(self) -> bool:
        """Whether its token is valid."""
        return self.token is not None and time.monotonic() < self.token.expires_at

    def note_trouble(self, since: float) -> float:
        """Record when its failures began, unless that is recorded. Returns the recorded time."""
        if self.trouble_since is None:
            self.trouble_since = since
        return self.trouble_since

    def refuse(self, why: str) -> AccountRefused:
        """Request no token for REFUSAL_KEPT seconds."""
        self.token = None
        self.refusal = why
        self.refused_until = time.monotonic() + REFUSAL_KEPT
        return AccountRefused(why)


class Accounts:
    """All accounts. `None` is the default one."""

    def __init__(self, settings: Settings, http: Http, events: EventListener) -> None:
        self._settings = settings
        self._http = http
        self._events = events
        self.default = Account(settings.mc_account_id)
        self._others: dict[str, Account] = {}
        self._waiting = 0  # requests that wait for tokens of these
        self._requests = AsyncLimiter(*TOKEN_REQUESTS)
        self._checks = AsyncLimiter(*CHECKS)
        self._checking: asyncio.Task[Token] | None = None
        self._tasks: set[asyncio.Task[Token]] = set()

    @property
    def others_in_trouble(self) -> dict[str, str]:
        """Accounts other than the default that fail, and why."""
        now = time.monotonic()
        troubles = {
            key: held.refusal if now < held.refused_until else held.trouble
            for key, held in self._others.items()
        }
        return {key: why for key, why in troubles.items() if why}

    def is_default(self, account: str | None) -> bool:
        """Whether `account` is the default business unit."""
        return not account or account == self.default.id

    def must_fetch(self, account: str | None) -> bool:
        """Whether this account is not the default and has no valid token."""
        return not self.is_default(account) and not self._account(account).has_token

    async def fetch(self, account: str | None, *, may_refuse: bool) -> None:
        """Wait for a token of an account that is not the default. Raises what `get` raises, and
        AccountsCrowded if its token request must wait and too many requests already do."""
        held, most = self._account(account), max(1, int(self._settings.prefetch * MAY_WAIT))
        is_queued = held.is_queued or (held.fetching is None and not self._requests.has_capacity())
        if may_refuse and is_queued and self._waiting >= most:
            raise AccountsCrowded(CROWDED)
        self._waiting += 1
        try:
            await self.get(account)
        finally:
            self._waiting -= 1

    async def get(self, account: str | None) -> Token:
        """A valid token. One caller fetches it; the others wait, or use the old one while it is valid. Raises
        TokenTrouble, AccountTrouble or AccountRefused."""
        held = self._account(account)
        now = time.monotonic()
        token = held.token
        if token is not None and now < token.expires_at:
            if now >= token.refresh_at and now >= held.next_refresh and held.fetching is None:
                held.next_refresh = now + REFRESH_PAUSE
                self._start(held)
            return token
        if now < held.refused_until:
            raise AccountRefused(held.refusal)
        return await asyncio.shield(held.fetching or self._start(held))

    async def keep_default_token(self) -> None:
        """Fetch the default account's first token, and retry after failures, until cancelled. So wrong
        credentials, and their correction, are known before the next request arrives."""
        while True:
            if self.default.token is None or self.default.trouble:
                with contextlib.suppress(TokenTrouble):
                    await self.get(None)
            await asyncio.sleep(REFRESH_PAUSE)

    def drop(self, account: str | None, token: Token, *, lacks_scope: bool = False) -> bool:
        """Drop a token that Marketing Cloud rejected, unless it has been replaced. Returns whether to retry
        with another token. One that `lacks_scope` is dropped at most once a minute: the scope may have been
        granted since."""
        held = self._account(account)
        if held.token is token:
            if lacks_scope:
                now = time.monotonic()
                if now - held.scope_dropped_at < SCOPE_PAUSE:
                    return False
                held.scope_dropped_at = now
            held.token = None
        return True

    async def refuse(self, account: str | None, status: int | None) -> AccountRefused:
        """Refuse an account, not the default, whose new token was rejected with `status`. Returns the error
        of its requests. Raises TokenTrouble if the default account cannot obtain a token either."""
        held = self._account(account)
        await self._check_credentials(held.note_trouble(time.monotonic()))
        return held.refuse(f"Marketing Cloud rejects the tokens of this account: it answered {status}")

    async def close(self) -> None:
        """Cancel token requests in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _account(self, account: str | None) -> Account:
        if account is None or self.is_default(account):
            return self.default
        held = self._others.get(account)
        if held is None:
            if len(self._others) >= ACCOUNTS_KEPT:
                idle = (key for key, each in self._others.items() if each.fetching is None)
                self._others.pop(next(idle, ""), None)
            held = self._others[account] = Account(account)
        return held

    def _start(self, held: Account) -> "asyncio.Task[Token]":
        """Fetch a token in the background."""
        held.fetching = self._task(self._fetch(held) if held is self.default else self._fetch_other(held))

        def ended(_: "asyncio.Task[Token]") -> None:
            held.fetching = None

        held.fetching.add_done_callback(ended)
        return held.fetching

    def _task(self, fetching: Coroutine[None, None, Token]) -> "asyncio.Task[Token]":
        task = asyncio.create_task(fetching, name="token")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # not reported
        return task

    async def _fetch_other(self, held: Account) -> Token:
        held.is_queued = True
        try:
            await self._requests.acquire()
        finally:
            held.is_queued = False
        began = time.monotonic()
        try:
            return await self._fetch(held)
        except TokenTrouble as trouble:
            # The answer does not distinguish wrong credentials from a wrong account, or an outage from a
            # failure of one account.
            await self._check_credentials(held.note_trouble(began))
            if trouble.cause.is_refusal:
                raise held.refuse(f"Marketing Cloud issues no token for this account: {trouble}") from None
            raise AccountTrouble(str(trouble), trouble.retry_after) from None

    async def _check_credentials(self, since: float) -> None:
        """Return if the default account has a token that was requested in the last CHECK_KEPT seconds and
        after `since`; else request one. Raises TokenTrouble."""
        default = self.default
        since = max(since, time.monotonic() - CHECK_KEPT)
        while default.token is None or default.token.asked_at < since:
            if self._checking is None or self._checking.done():
                self._checking = self._task(self._check())
            await asyncio.shield(self._checking)

    async def _check(self) -> Token:
        await self._checks.acquire()
        return await asyncio.shield(self.default.fetching or self._start(self.default))

    async def _fetch(self, held: Account) -> Token:
        settings = self._settings
        client_id, client_secret = settings.now("mc_client_id"), settings.now("mc_client_secret")
        request = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        if held.id:
            # The documentation says number, its examples send a string, and the endpoint accepts both.
            request["account_id"] = held.id
        asked_at = time.monotonic()
        try:
            try:
                response = await self._http.post(f"{settings.auth_url}/v2/token", request)
            except NoAnswer as error:
                raise TokenTrouble(Cause.NO_ANSWER, f"the token endpoint: {error}") from None
            held.token = read_token(response, asked_at, settings.rest_url, (client_id, client_secret))
        except TokenTrouble as trouble:
            held.trouble = str(trouble)
            if trouble.cause.is_refusal:
                held.refused_since = held.refused_since or datetime.now(UTC)
            self._events.token_refused(held.id, trouble.result, held.trouble)
            raise
        held.trouble, held.trouble_since, held.refused_since = "", None, None
        self._events.token_fetched(held.id)
        return held.token
