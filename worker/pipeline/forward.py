"""Forwarding one request to Marketing Cloud, until the answer is final (contract §6).

`forward` makes attempts up to their number and the budget. An attempt waits for a token of its account and
for the flow, calls, and reports the result to the flow. It is repeated, and does not count, after an outage,
a throttled call, or the first rejection of a token."""

import asyncio
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from worker.backoff import Backoff
from worker.marketing_cloud.answer import Answer
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.http import EnsureLease
from worker.marketing_cloud.token import AccountRefused, AccountsCrowded, AccountTrouble, Token, TokenTrouble
from worker.pipeline import policy
from worker.pipeline.flow import LONGEST_PROBE_WAIT, Flow, FlowState
from worker.pipeline.pace import Call
from worker.pipeline.policy import Verdict
from worker.pipeline.request import Outcome, Request
from worker.settings import Settings

# A request may be throttled so often, while others succeed, before that counts as an attempt.
PATIENCE = 5
KEPT = 10_000  # resources and accounts whose last request failed


class _Turns:
    """The queue of requests for their calls, first come, first served. Every started call must end."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._waiting: deque[asyncio.Future[Call]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def next(self, *, in_front: bool = False) -> Call:
        """Wait until a call may start. `in_front`: ahead of all others."""
        if not self._waiting and self._flow.wait() == 0:
            return self._flow.begin()
        turn: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if in_front else self._waiting.append)(turn)
        self._go()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.ended(turn.result())
            raise

    def ended(self, call: Call) -> None:
        """The call has ended, or was not made: others may start."""
        self._flow.abandoned(call)
        if self._waiting:
            self._go()
        else:
            self._flow.no_request_waits()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            if self._waiting[0].done():  # it was cancelled
                self._waiting.popleft()
                continue
            wait = self._flow.wait()
            if wait:
                self._timer = asyncio.get_running_loop().call_later(wait, self._go)
            if wait != 0:
                return
            self._waiting.popleft().set_result(self._flow.begin())


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of one attempt. `token` is that of the call, if one was made. `is_account`: the failure
    concerns the account alone, so it cannot be an outage."""

    verdict: Verdict
    answer: Answer
    token: Token | None = None
    is_account: bool = False


class Forwarder:
    """Forwards requests; shared by all lanes."""

    def __init__(self, settings: Settings, marketing_cloud: MarketingCloud, flow: Flow) -> None:
        self._settings = settings
        self._marketing_cloud = marketing_cloud
        self._accounts = marketing_cloud.accounts
        self.flow = flow
        self._turns = _Turns(flow)
        # Resources and accounts whose last request failed, oldest first. Each further request of theirs has
        # one attempt, so that a failing page cannot fill the prefetch for long.
        self._failing: dict[Hashable, None] = {}
        self._requests = 0  # requests that are being forwarded

    def reset(self) -> None:
        """The deliveries of a subscription are requeued."""
        if not self._requests:
            self.flow.reset()

    async def forward(self, request: Request, ensure_lease: EnsureLease) -> Outcome:
        """Return the final outcome. Awaits `ensure_lease` before each call: it returns if the delivery still
        belongs to this worker. Only a cancellation ends this without an outcome."""
        self._requests += 1
        try:
            settings, failures, answered = self._settings, 0, self.flow.answered
            while True:
                result = await self._attempt(request, ensure_lease)
                if result.verdict in policy.OUTCOMES:
                    if result.verdict is Verdict.REGISTERED and self._failing:
                        self._failing.pop(request.resource, None)
                        self._failing.pop(_account(request), None)
                    return policy.outcome(result.verdict, result.answer)
                failures += 1
                remaining = settings.retry_budget - request.spent
                is_failing = request.resource in self._failing or _account(request) in self._failing
                allowed = 1 if is_failing else settings.retry_attempts
                if request.attempts >= allowed or remaining <= 0:
                    if result.verdict is not Verdict.OUTAGE or self.flow.answered > answered:
                        self._failing[_account(request) if result.is_account else request.resource] = None
                        if len(self._failing) > KEPT:
                            del self._failing[next(iter(self._failing))]
                        return policy.outcome(result.verdict, result.answer)
                    # No other call was answered: this may be an outage, so the attempt does not count.
                    request.attempts, remaining = request.attempts - 1, policy.LONGEST_BACKOFF
                wait = policy.retry_wait(failures, settings.retry_base, result.answer.retry_after, remaining)
                await asyncio.sleep(wait)
                request.spent += wait
        finally:
            self._requests -= 1

    async def _attempt(self, request: Request, ensure_lease: EnsureLease) -> _Result:
        """Return the result of one attempt that counts."""
        before, has_new_token, in_front = request.attempts, False, False
        while True:
            trouble = await self._wait_for_token(request)
            if trouble is not None:
                return trouble
            call = await self._turns.next(in_front=in_front)
            try:
                began = time.monotonic()
                result = await self._call(request, ensure_lease, call)
                if result is not None and not has_new_token and self._drops_token(request, result):
                    has_new_token = True
                    result = await self._call(request, ensure_lease, call)
                if result is None:
                    continue
                if self._counts(request, result, call):
                    request.spent += time.monotonic() - began
                    return result
            finally:
                self._turns.ended(call)
            if self._is_token_rejected(request, result, call):
                refusal = await self._refuse(request, result)
                if refusal is not None:
                    return refusal
            in_front = result.verdict is Verdict.THROTTLED and not call.is_probe
            request.attempts, has_new_token = before, False

    async def _wait_for_token(self, request: Request) -> _Result | None:
        """Fetch the token of an account other than the default, if it has none. This may take long, so it
        happens before the call starts: a probe that waits would keep the gate closed. Returns the account's
        failure, or None."""
        outages = 0
        while self._accounts.must_fetch(request.account):
            try:
                await self._accounts.fetch(request.account, may_refuse=not self.flow.is_pausing)
            except AccountsCrowded as crowded:
                return _Result(Verdict.CROWDED, Answer(None, f"{crowded}."), is_account=True)
            except AccountRefused as refused:
                return _Result(Verdict.FORBIDDEN, Answer(None, f"{refused}."), is_account=True)
            except AccountTrouble as trouble:
                request.attempts += 1
                answer = Answer(None, f"No access token: {trouble}.", retry_after=trouble.retry_after)
                return _Result(Verdict.RETRY, answer, is_account=True)
            except TokenTrouble as trouble:
                outages += 1
                self.flow.close(trouble.cause, trouble.summary)
                await asyncio.sleep(Backoff(self._settings.retry_base, LONGEST_PROBE_WAIT).draw(outages))
        return None

    async def _call(self, request: Request, ensure_lease: EnsureLease, call: Call) -> _Result | None:
        """Make one call. None if it was not made: the gate has closed, or the account has no token."""
        accounts = self._accounts
        if accounts.must_fetch(request.account):
            return None
        try:
            token = await accounts.get(request.account)
        except TokenTrouble as trouble:
            answer = Answer(None, f"No access token: {trouble.summary}.", retry_after=trouble.retry_after)
            return _Result(Verdict.CREDENTIALS, answer)
        except AccountTrouble:
            return None  # its token has just expired
        await ensure_lease()
        if not self.flow.allows(call):
            return None
        request.attempts += 1
        request.phase = "calling"
        answer = await self._marketing_cloud.register(request.delivery.body, token, ensure_lease)
        request.phase = "waiting"
        return _Result(policy.judge(answer)[0], answer, token)

    def _drops_token(self, request: Request, result: _Result) -> bool:
        """Drop a token that was rejected or lacks a scope. Returns whether to retry with another one."""
        if result.token is None:
            return False
        if result.verdict is Verdict.CREDENTIALS:
            return self._accounts.drop(request.account, result.token)
        if result.verdict is Verdict.FORBIDDEN and result.answer.errorcode in policy.AUTHORIZATION:
            return self._accounts.drop(request.account, result.token, lacks_scope=True)
        return False

    def _is_token_rejected(self, request: Request, result: _Result, call: Call) -> bool:
        """Whether Marketing Cloud rejected the new token of an account other than the default."""
        is_credentials = result.verdict is Verdict.CREDENTIALS and result.token is not None
        return is_credentials and not call.is_probe and not self._accounts.is_default(request.account)

    async def _refuse(self, request: Request, result: _Result) -> _Result | None:
        """The result of a request whose account's tokens are rejected; None during an outage."""
        try:
            await self._accounts.refuse(request.account, result.answer.status)
        except TokenTrouble as trouble:
            self.flow.close(trouble.cause, trouble.summary)
        if self.flow.state is FlowState.CLOSED:
            return None
        return _Result(Verdict.FORBIDDEN, result.answer, is_account=True)

    def _counts(self, request: Request, result: _Result, call: Call) -> bool:
        """Report the result of a call to the flow. Returns whether the attempt counts: not if the cause is an
        outage, a speed limit or the account's token."""
        verdict, answer, flow = result.verdict, result.answer, self.flow
        if verdict in policy.OUTCOMES:
            flow.accepted(call)
            return True
        if self._is_token_rejected(request, result, call):
            return False
        cause, pause = policy.judge(answer)[1], answer.pause
        why = policy.why(answer, cause)
        if verdict is Verdict.THROTTLED:
            request.throttled += flow.answered > request.answered
            request.answered = flow.answered
            is_own = request.throttled > PATIENCE
            if not is_own:
                flow.throttled(call, why, pause)
            return is_own
        if verdict in (Verdict.CREDENTIALS, Verdict.BLOCKED):
            least = policy.BLOCKED_PAUSE if verdict is Verdict.BLOCKED else 0.0
            flow.close(cause, why, max(pause, least), call)
            return False
        outage = verdict is Verdict.OUTAGE
        if request.resource in self._failing and not call.is_probe:
            # Its last request failed too: only together with other resources does this indicate an outage.
            outage = False
            if flow.state is FlowState.OPENING and flow.allows(call):
                return True
        return not flow.failed(call, request.resource, cause, why, outage=outage, pause=pause)


def _account(request: Request) -> Hashable:
    return "account", request.account
