"""Forwarding one request to Marketing Cloud, until the answer is final (contract §6).

Three loops, each with its own meaning: a token that was turned down is replaced once (`_call`), an outage
is waited out and costs nothing (`_attempt`), and what may be this request's own fault is tried
again within attempts and budget (`_retry`).
"""

import time
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from worker.contract.secrets import SecretMask
from worker.marketing_cloud.answer import Answer, masked
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import AccountRefused, Token, TokenTrouble
from worker.pipeline import policy
from worker.pipeline.accounts import Accounts
from worker.pipeline.gate import Gate
from worker.pipeline.policy import Verdict
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings

EnsureLease = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Try:
    """What one attempt came to."""

    verdict: Verdict
    answer: Answer
    token: Token | None = None  # the one that the call was made with, if one was made


class Forwarder:
    """Forwards requests; shared by all lanes."""

    def __init__(self, settings: Settings, marketing_cloud: MarketingCloud, gate: Gate) -> None:
        self._settings = settings
        self._may_rest: Callable[[], bool] = lambda: True
        self._marketing_cloud = marketing_cloud
        self._gate = gate
        self._limiter = _limiter(settings.rate_limit)
        self._accounts = Accounts(
            marketing_cloud.tokens, gate, patience=settings.retry_attempts, base=settings.retry_base
        )

    async def forward(self, request: Request, ensure_lease: EnsureLease) -> Outcome:
        """The final outcome. `ensure_lease` is awaited before each call: it returns while the delivery is
        still known to be ours. Ends otherwise only by cancellation."""
        started = time.monotonic() - self._gate.paused
        result = await self._attempt(request, ensure_lease)
        if not result.verdict.is_final:
            result = await self._retry(request, ensure_lease, result, started)
        if result.verdict.is_final:
            return policy.outcome(result.verdict, result.answer)
        return policy.exhausted(result.answer)

    @property
    def is_pausing(self) -> bool:
        """Whether an outage keeps requests waiting."""
        return self._gate.is_pausing

    def share(self, share: float, may_rest: Callable[[], bool]) -> "Forwarder":
        """One of several that forward side by side, with one gate and so large a share of the rate limit.
        `may_rest` tells whether the others have no request under way either."""
        other = copy(self)
        rate = self._settings.rate_limit
        other._limiter = None if rate is None else _limiter(rate * share)
        other._may_rest = may_rest
        return other

    def rest(self) -> None:
        """No request is under way any more."""
        if self._may_rest():
            self._gate.rest()
            self._accounts.rest()

    async def _retry(self, request: Request, ensure_lease: EnsureLease, first: _Try, started: float) -> _Try:
        settings, gate = self._settings, self._gate
        latest = first

        def remaining() -> float:
            return settings.retry_budget - (time.monotonic() - gate.paused - request.queued - started)

        def wait(state: RetryCallState) -> float:
            hint = latest.answer.retry_after
            return policy.retry_wait(state.attempt_number, settings.retry_base, hint, remaining())

        def spent(_: RetryCallState) -> bool:
            return request.attempts >= settings.retry_attempts or remaining() <= 0

        async def attempt() -> _Try:
            nonlocal latest
            latest = await self._attempt(request, ensure_lease)
            return latest

        retrying = AsyncRetrying(
            retry=retry_if_result(lambda result: not result.verdict.is_final),
            wait=wait,
            stop=spent,
            retry_error_callback=lambda _: latest,
        )
        return await retrying(_after(first, attempt))

    async def _attempt(self, request: Request, ensure_lease: EnsureLease) -> _Try:
        """One attempt that counts: what falls into an outage is waited out and made again."""
        gate, accounts, account = self._gate, self._accounts, request.account
        while True:
            own_probe = account in accounts and await accounts.enter(account)
            probe, before = False, request.attempts
            try:
                probe = gate.is_closed and await gate.enter()
                if probe and not own_probe and account in accounts:
                    gate.abandoned()
                    continue
                result = await self._call(request, ensure_lease, probe=probe)
            except BaseException:
                if probe:
                    gate.abandoned()
                if own_probe:
                    accounts.abandoned(account)
                raise
            if account in accounts or result.verdict is Verdict.ACCOUNT:
                result = self._tell_accounts(result, account, own_probe)
            if not self._is_outage(result, request, probe):
                return result
            request.attempts = before

    def _tell_accounts(self, result: _Try, account: str | None, own_probe: bool) -> _Try:
        accounts = self._accounts
        if result.verdict is Verdict.ACCOUNT:
            if accounts.in_trouble(account, result.answer, probe=own_probe):
                return _Try(Verdict.FORBIDDEN, result.answer)
        elif result.answer.status is not None or result.verdict is Verdict.FORBIDDEN:
            accounts.is_over(account)
        elif own_probe:
            accounts.abandoned(account)
        return result

    def _is_outage(self, result: _Try, request: Request, probe: bool) -> bool:
        """Tell the gate how it went. True where the attempt does not count."""
        gate, verdict, answer = self._gate, result.verdict, result.answer
        if verdict.is_final:
            # What the worker found out by itself, and a token turned down, say nothing about an outage.
            if answer.status is not None and not _is_blamed(result):
                gate.succeeded(probe=probe)
            elif probe:
                gate.abandoned()
            return False
        if verdict is Verdict.ACCOUNT:
            if probe:
                gate.abandoned()
            return True
        if verdict is Verdict.CREDENTIALS:
            gate.close(policy.why(answer), answer.pause, probe=probe)
            return True
        if verdict is Verdict.BLOCKED:
            gate.close(policy.why(answer), policy.BLOCKED_PAUSE, probe=probe)
            return True
        return gate.failed(
            outage=verdict is Verdict.OUTAGE,
            resource=request.resource,
            pause=answer.pause,
            why=policy.why(answer),
            probe=probe,
        )

    async def _call(self, request: Request, ensure_lease: EnsureLease, *, probe: bool) -> _Try:
        """One call, and a second one with a fresh token where the first token is turned down."""
        result = await self._call_once(request, ensure_lease, probe=probe)
        if result.verdict is Verdict.CREDENTIALS and result.token is not None:
            # The second one is kept: the next probe tries it, before it fetches another.
            self._marketing_cloud.tokens.drop(request.account, result.token)
            result = await self._call_once(request, ensure_lease, probe=probe)
        if result.verdict is Verdict.CREDENTIALS and not self._marketing_cloud.tokens.is_default(
            request.account
        ):
            return _Try(Verdict.ACCOUNT, result.answer)
        return result

    async def _call_once(self, request: Request, ensure_lease: EnsureLease, *, probe: bool) -> _Try:
        tokens = self._marketing_cloud.tokens
        try:
            token = await tokens.get(request.account)
        except AccountRefused as error:
            return _Try(Verdict.FORBIDDEN, Answer(None, f"{error}."))
        except TokenTrouble as error:
            default = tokens.is_default(request.account)
            verdict = Verdict.CREDENTIALS if default else Verdict.ACCOUNT
            answer = Answer(None, f"No access token: {error}.", retry_after=error.retry_after)
            return _Try(verdict, answer)
        if self._limiter is not None and not probe:  # which must not wait behind those that may not call
            since, paused = time.monotonic(), self._gate.paused
            await self._limiter.acquire()
            request.queued += time.monotonic() - since - (self._gate.paused - paused)
        await ensure_lease()
        if self._gate.is_closed and not probe:
            # It closed while this request waited for a token or for its turn.
            return _Try(Verdict.OUTAGE, Answer(None, self._gate.why))
        request.attempts += 1
        request.phase = "calling"
        answer = await self._marketing_cloud.register(request.delivery.body, token, ensure_lease)
        request.phase = "waiting"
        verdict = policy.judge(answer)
        if verdict is not Verdict.REGISTERED:
            # Here and not later: the text goes to the log and the admin server too, as why the gate closed.
            answer = masked(answer, SecretMask.of_body(request.delivery.body))
        return _Try(verdict, answer, token)


def _is_blamed(result: _Try) -> bool:
    return result.verdict is Verdict.FORBIDDEN and policy.judge(result.answer) is Verdict.CREDENTIALS


def _after(first: _Try, attempt: Callable[[], Awaitable[_Try]]) -> Callable[[], Awaitable[_Try]]:
    """`attempt`, but the first time what came of the attempt that was made already."""
    made: list[_Try] = [first]

    async def again() -> _Try:
        return made.pop() if made else await attempt()

    return again


def _limiter(rate: float | None) -> AsyncLimiter | None:
    if rate is None:
        return None
    return AsyncLimiter(rate, 1) if rate >= 1 else AsyncLimiter(1, 1 / rate)
