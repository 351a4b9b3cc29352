"""The accounts (business units) and their tokens: one token for each, shared, refreshed ahead (contract §6).

Trouble of the default account is an outage. Trouble of another account is its own, as long as the default
account is given a token that was asked for after that trouble began.
"""

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

REFRESH_PAUSE = 30.0  # seconds between attempts to refresh a token that still works
REFUSAL_KEPT = 60.0  # seconds that a refused account is not asked for again
SCOPE_PAUSE = 60.0  # seconds between tokens that are dropped because a scope may have been granted since
ACCOUNTS_KEPT = 10_000
# The part of the prefetch that may wait for tokens of accounts other than the default. Their token requests
# are limited, so many accounts at once would otherwise fill the prefetch and hold up all others.
MAY_WAIT = 1 / 4
TOKEN_REQUESTS = (20, 20.0)  # for accounts other than the default: bursts of so many, in so many seconds
CROWDED = "Too many business units asked for their first access token at once: replay this request later"
CHECK_KEPT = 60.0  # seconds for which a token of the default account shows that the credentials work
CHECKS = (4, 60.0)  # checks of the credentials: so many tokens of the default account, in so many seconds


@dataclass(slots=True, eq=False)
class Account:
    """One account: its token, and what is wrong with it."""

    id: str | None
    token: Token | None = None
    fetching: "asyncio.Task[Token] | None" = None
    is_queued: bool = False  # its token request waits for its turn
    next_refresh: float = 0.0
    refusal: str = ""
    refused_until: float = 0.0
    trouble: str = ""  # why the last token request brought none
    trouble_since: float | None = None
    refused_since: datetime | None = None  # while Marketing Cloud refuses its tokens
    scope_dropped_at: float = -SCOPE_PAUSE

    @property
    def has_token(self) -> bool:
        """Whether it holds a token that is still good."""
        return self.token is not None and time.monotonic() < self.token.expires_at

    def is_in_trouble(self, since: float) -> float:
        """Note that trouble began then, unless it is known already. Returns when it began."""
        if self.trouble_since is None:
            self.trouble_since = since
        return self.trouble_since

    def refuse(self, why: str) -> AccountRefused:
        """Ask for no token for a while."""
        self.token = None
        self.refusal = why
        self.refused_until = time.monotonic() + REFUSAL_KEPT
        return AccountRefused(why)


class Accounts:
    """All accounts. `None` stands for the default one."""

    def __init__(self, settings: Settings, http: Http, events: EventListener) -> None:
        self._settings = settings
        self._http = http
        self._events = events
        self.default = Account(settings.mc_account_id)
        self._others: dict[str, Account] = {}
        self._waiting = 0  # requests, for tokens of these
        self._requests = AsyncLimiter(*TOKEN_REQUESTS)
        self._checks = AsyncLimiter(*CHECKS)
        self._checking: asyncio.Task[Token] | None = None
        self._tasks: set[asyncio.Task[Token]] = set()

    @property
    def others_in_trouble(self) -> dict[str, str]:
        """Why accounts other than the default are given no token, or are turned down."""
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
        """Whether a request of this account, which is not the default, has to wait for a token."""
        return not self.is_default(account) and not self._account(account).has_token

    async def fetch(self, account: str | None, *, may_refuse: bool) -> None:
        """Wait for a token of an account that is not the default. Raises what `get` raises, and
        AccountsCrowded where its token request would have to queue while too many wait already."""
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
        """A token that is good now. One caller fetches while the others wait, or use the old one as long
        as it lasts. Raises TokenTrouble, AccountTrouble or AccountRefused."""
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
        """Fetch the default account's first token, and again while none is given, until cancelled. So wrong
        credentials are known before a request comes, and their correction before the next one."""
        while True:
            if self.default.token is None or self.default.trouble:
                with contextlib.suppress(TokenTrouble):
                    await self.get(None)
            await asyncio.sleep(REFRESH_PAUSE)

    def drop(self, account: str | None, token: Token, *, lacks_scope: bool = False) -> bool:
        """Forget a token that Marketing Cloud turned down, unless it has been replaced already. Returns
        whether another token is worth a try. A scope may have been granted since: one that `lacks_scope` is
        dropped once a minute at most."""
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
        """Fresh tokens of an account, which is not the default, were turned down with `status`. Returns what
        its requests fail with. Raises TokenTrouble where the default account is given no token either."""
        held = self._account(account)
        await self._check_credentials(held.is_in_trouble(time.monotonic()))
        return held.refuse(f"Marketing Cloud turns down the tokens of this account: it answered {status}")

    async def close(self) -> None:
        """Cancel the requests for tokens that are under way."""
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
            # Wrong credentials look the same as a wrong account, and an outage the same as trouble of one.
            await self._check_credentials(held.is_in_trouble(began))
            if trouble.cause.is_refusal:
                raise held.refuse(f"Marketing Cloud gives no token for this account: {trouble}") from None
            raise AccountTrouble(str(trouble), trouble.retry_after) from None

    async def _check_credentials(self, since: float) -> None:
        """Return if the default account has been given a token lately, and after the trouble of another
        account began. Raises TokenTrouble."""
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
            # The documentation calls it a number, but its examples send a string. The endpoint takes both.
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
