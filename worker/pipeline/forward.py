"""Forwarding one request to Marketing Cloud, until the answer is final (contract §6).

`forward` makes attempts within their number and the budget. An attempt (`_attempt`) waits until an outage is
over, and replaces a token that was turned down once.
"""

import asyncio
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from worker.backoff import backoff
from worker.contract.secrets import SecretMask
from worker.marketing_cloud.answer import Answer, masked
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.http import EnsureLease
from worker.marketing_cloud.token import AccountRefused, AccountTrouble, Token, TokenTrouble
from worker.pipeline import policy
from worker.pipeline.gate import LONGEST_PROBE_WAIT, Gate, GateState, Passage
from worker.pipeline.given_up import GivenUp
from worker.pipeline.policy import Verdict
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of one attempt. `token` is the one that the call was made with, if a call was made.
    `is_account` tells of an account's own trouble, which says nothing about an outage."""

    verdict: Verdict
    answer: Answer
    token: Token | None = None
    is_account: bool = False


class Forwarder:
    """Forwards requests; shared by all lanes."""

    def __init__(self, settings: Settings, marketing_cloud: MarketingCloud, gate: Gate) -> None:
        self._settings = settings
        self._rate = settings.rate_limit
        self._may_leave: Callable[[], bool] = lambda: True
        self._marketing_cloud = marketing_cloud
        self._accounts = marketing_cloud.accounts
        self._gate = gate
        self._limiter = _limiter(self._rate)
        self._limiter_closings = gate.closings  # when the limiter was made
        self._given_up = GivenUp()

    @property
    def is_pausing(self) -> bool:
        """Whether an outage keeps requests waiting."""
        return self._gate.is_pausing

    def share(self, share: float, may_leave: Callable[[], bool]) -> "Forwarder":
        """One of several that forward side by side, with one gate and so large a share of the rate limit.
        `may_leave` tells whether the others have no request under way either."""
        other = copy(self)
        other._rate = None if self._rate is None else self._rate * share
        other._limiter = _limiter(other._rate)
        other._may_leave = may_leave
        return other

    def leave(self) -> None:
        """The deliveries go back to the queue: no request is under way any more."""
        if self._may_leave():
            self._gate.leave()

    async def forward(self, request: Request, ensure_lease: EnsureLease) -> Outcome:
        """The final outcome. `ensure_lease` is awaited before each call: it returns while the delivery is
        still known to be ours. Ends otherwise only by cancellation."""
        started = time.monotonic() - self._gate.paused
        result = await self._attempt(request, ensure_lease)
        # Nearly every request needs one attempt only. The first one is made outside the loop, because
        # entering the loop costs about a third of the CPU time of a request.
        if not result.verdict.is_final:
            result = await self._retry(request, ensure_lease, result, started)
        if not result.verdict.is_final:
            self._given_up.add(request, is_account=result.is_account)
            return policy.exhausted(result.answer)
        if result.verdict is Verdict.REGISTERED:
            self._given_up.forgive(request)
        return policy.outcome(result.verdict, result.answer)

    async def _retry(
        self, request: Request, ensure_lease: EnsureLease, result: _Result, started: float
    ) -> _Result:
        """Attempt again after `result`, the first attempt's, until one is final or none is left."""
        settings, gate = self._settings, self._gate

        def remaining() -> float:
            return settings.retry_budget - (time.monotonic() - gate.paused - request.queued - started)

        def wait(state: RetryCallState) -> float:
            hint = result.answer.retry_after
            return policy.retry_wait(state.attempt_number, settings.retry_base, hint, remaining())

        def none_is_left(_: RetryCallState) -> bool:
            allowed = 1 if request in self._given_up else settings.retry_attempts
            return request.attempts >= allowed or remaining() <= 0

        async for attempt in AsyncRetrying(
            retry=retry_if_result(lambda result: not result.verdict.is_final),
            wait=wait,
            stop=none_is_left,
            retry_error_callback=lambda _: None,
        ):
            if attempt.retry_state.attempt_number > 1:
                result = await self._attempt(request, ensure_lease)
            attempt.retry_state.set_result(result)
        return result

    async def _attempt(self, request: Request, ensure_lease: EnsureLease) -> _Result:
        """One attempt that counts. A call that fails in an outage is repeated after it and not counted."""
        before, has_new_token = request.attempts, False
        while True:
            trouble = await self._wait_for_token(request)
            if trouble is not None:
                return trouble
            async with self._gate.passage() as passage:
                result = await self._call(request, ensure_lease, passage)
                if result is not None and not has_new_token and self._drops_token(request, result):
                    has_new_token = True
                    result = await self._call(request, ensure_lease, passage)
                if result is None:
                    continue
                is_own = self._is_turned_down(request, result) and not passage.is_probe
                if not is_own and not self._is_outage(request, result, passage):
                    return result
            refusal = await self._refuse(request, result) if is_own else None
            if refusal is not None:
                return refusal
            request.attempts, has_new_token = before, False

    async def _wait_for_token(self, request: Request) -> _Result | None:
        """Fetch the token of an account other than the default, if there is none. This happens in front of
        the gate, since it may have to wait for its turn: a probe that waits would keep the gate closed.
        Returns the account's own trouble, or None."""
        outages = 0
        while self._accounts.must_fetch(request.account):
            try:
                await self._accounts.get(request.account)
            except AccountRefused as refused:
                return _Result(Verdict.FORBIDDEN, Answer(None, f"{refused}."), is_account=True)
            except AccountTrouble as trouble:
                request.attempts += 1
                answer = Answer(None, f"No access token: {trouble}.", retry_after=trouble.retry_after)
                return _Result(Verdict.RETRY, answer, is_account=True)
            except TokenTrouble as trouble:
                outages += 1
                self._gate.close(trouble.summary)
                await asyncio.sleep(backoff(outages, self._settings.retry_base, LONGEST_PROBE_WAIT))
        return None

    async def _call(self, request: Request, ensure_lease: EnsureLease, passage: Passage) -> _Result | None:
        """One call. None where it was not made: the gate has closed, or the account's token is gone."""
        accounts = self._accounts
        if accounts.must_fetch(request.account):
            return None
        try:
            token = await accounts.get(request.account)
        except TokenTrouble as trouble:
            answer = Answer(None, f"No access token: {trouble.summary}.", retry_after=trouble.retry_after)
            return _Result(Verdict.CREDENTIALS, answer)
        except (AccountRefused, AccountTrouble):
            return None  # its token has expired just now
        if self._limiter is not None and not await self._wait_for_rate(request):
            return None
        await ensure_lease()
        if not passage.may_call:
            return None
        request.attempts += 1
        request.phase = "calling"
        answer = await self._marketing_cloud.register(request.delivery.body, token, ensure_lease)
        request.phase = "waiting"
        verdict = policy.judge(answer)
        if verdict is not Verdict.REGISTERED:
            answer = masked(answer, SecretMask.of_body(request.delivery.body))
        return _Result(verdict, answer, token)

    async def _wait_for_rate(self, request: Request) -> bool:
        """Wait for the rate limit, which spends no budget. False where the gate has closed meanwhile: after a
        pause all requests queue again, so that none that may call waits behind one that may not."""
        gate = self._gate
        if self._limiter_closings != gate.closings:
            self._limiter, self._limiter_closings = _limiter(self._rate), gate.closings
        limiter, since, paused = self._limiter, time.monotonic(), gate.paused
        if limiter is not None:
            await limiter.acquire()
            request.queued += time.monotonic() - since - (gate.paused - paused)
        return limiter is self._limiter

    def _drops_token(self, request: Request, result: _Result) -> bool:
        """Drop a token that was turned down, or that lacks a scope. Returns whether another one is worth a
        try."""
        if result.token is None:
            return False
        if result.verdict is Verdict.CREDENTIALS:
            self._accounts.drop(request.account, result.token)
            return True
        if result.verdict is Verdict.FORBIDDEN and policy.lacks_scope(result.answer):
            return self._accounts.drop_for_scope(request.account, result.token)
        return False

    def _is_turned_down(self, request: Request, result: _Result) -> bool:
        """Whether the fresh token of an account other than the default was turned down."""
        is_credentials = result.verdict is Verdict.CREDENTIALS and result.token is not None
        return is_credentials and not self._accounts.is_default(request.account)

    async def _refuse(self, request: Request, result: _Result) -> _Result | None:
        """The end of a request whose account's tokens are turned down; None where this is an outage."""
        try:
            await self._accounts.refuse(request.account, result.answer.status)
        except TokenTrouble as trouble:
            self._gate.close(trouble.summary)
        if self._gate.state is GateState.CLOSED:
            return None
        return _Result(Verdict.FORBIDDEN, result.answer, is_account=True)

    def _is_outage(self, request: Request, result: _Result, passage: Passage) -> bool:
        """Tell the gate how a call went. Returns whether an outage is to blame, so that the attempt does not
        count."""
        verdict, answer = result.verdict, result.answer
        if verdict.is_final:
            passage.succeeded(request.resource)
            return False
        if verdict is Verdict.CREDENTIALS:
            passage.close(policy.why(answer), answer.pause)
            return True
        if verdict is Verdict.BLOCKED:
            passage.close(policy.why(answer), max(policy.BLOCKED_PAUSE, answer.pause))
            return True
        outage = verdict is Verdict.OUTAGE
        if self._given_up.has_resource(request) and not passage.is_probe:
            # It fails as it did before: only together with others in the row does that tell of an outage.
            outage = False
            if self._gate.state is GateState.OPENING and passage.may_call:
                return False
        return passage.failed(request.resource, policy.why(answer), outage=outage, pause=answer.pause)


def _limiter(rate: float | None) -> AsyncLimiter | None:
    if rate is None:
        return None
    return AsyncLimiter(rate, 1) if rate >= 1 else AsyncLimiter(1, 1 / rate)
