"""Accounts in trouble: a business unit that gets no token, or whose tokens are turned down, waits alone
(contract §6: one wrong header never stops the others).

Its requests wait at a gate of its own. Where its tokens are turned down again and again, or others get
through meanwhile, it is the account that is shut out, and its requests fail. Where it happens to several
at once, with no success between, it is Marketing Cloud, and the gate of all closes.
"""

from dataclasses import dataclass

from worker.events import EventListener
from worker.marketing_cloud.answer import Answer
from worker.marketing_cloud.token import Tokens
from worker.pipeline import policy
from worker.pipeline.gate import MANY_RESOURCES, Gate


@dataclass(slots=True)
class _Trouble:
    gate: Gate
    successes: int  # of all accounts, when it began
    strikes: int = 0  # times that a fresh token was turned down


class Accounts:
    """What is known of accounts that only some messages name."""

    def __init__(self, tokens: Tokens, gate: Gate, *, patience: int, base: float) -> None:
        self._tokens = tokens
        self._gate = gate
        self._patience = patience  # strikes
        self._base = base
        self._troubled: dict[str | None, _Trouble] = {}

    def __contains__(self, account: str | None) -> bool:
        return account in self._troubled

    async def enter(self, account: str | None) -> bool:
        """Wait while the account is in trouble. True where the caller is its probe."""
        trouble = self._troubled.get(account)
        return trouble is not None and await trouble.gate.enter()

    def abandoned(self, account: str | None) -> None:
        """The probe's call told nothing of the account."""
        if account in self._troubled:
            self._troubled[account].gate.abandoned()

    def is_over(self, account: str | None) -> None:
        """A token of the account was taken, or its requests fail from now on."""
        trouble = self._troubled.pop(account, None)
        if trouble is not None:
            trouble.gate.succeeded()

    def in_trouble(self, account: str | None, answer: Answer, *, probe: bool) -> bool:
        """There was no token (`answer` has no status), or a fresh one was turned down. True where the account
        is to blame: then it is left in peace for a while, and no token is fetched for it."""
        trouble = self._troubled.get(account)
        is_new = trouble is None
        if trouble is None:
            trouble = _Trouble(Gate(1, self._base, EventListener()), self._gate.successes)
            self._troubled[account] = trouble
        if answer.status is not None:
            trouble.strikes += is_new or probe
            if self._is_to_blame(trouble):
                # The text itself is this request's own: others of the account must not read it.
                self._tokens.refuse(account, f"it answered {answer.status}")
                self.is_over(account)
                return True
            if self._many_are_shut_out():
                self._gate.close(policy.why(answer))
        trouble.gate.close(answer.message, answer.pause, probe=probe)
        return False

    def rest(self) -> None:
        """No request is under way any more."""
        for trouble in self._troubled.values():
            trouble.gate.rest()
        self._troubled.clear()

    def _is_to_blame(self, trouble: _Trouble) -> bool:
        others_got_through = self._gate.successes > trouble.successes
        return not self._gate.is_closed and (others_got_through or trouble.strikes > self._patience)

    def _many_are_shut_out(self) -> bool:
        now = self._gate.successes
        shut_out = [t for t in self._troubled.values() if t.strikes and t.successes == now]
        return len(shut_out) >= MANY_RESOURCES
