"""Resources and accounts whose requests fail get fewer attempts. So one page that fails, or one account
without tokens, cannot fill the prefetch for long (contract §6)."""

from collections.abc import Hashable

from worker.pipeline.request import Request

KEPT = 10_000  # resources and accounts


class GivenUp:
    """Resources and accounts whose last request was given up. Each further request of theirs gets one
    attempt, until one succeeds."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, None] = {}  # the oldest first

    def __contains__(self, request: Request) -> bool:
        keys = self._keys
        return bool(keys) and (request.resource in keys or _account(request) in keys)

    def has_resource(self, request: Request) -> bool:
        """Whether the last request of its resource was given up, and not one of its account for want of a
        token."""
        return request.resource in self._keys

    def add(self, request: Request, *, is_account: bool) -> None:
        """A request was given up. `is_account`: because of its account, not of its resource."""
        self._keys[_account(request) if is_account else request.resource] = None
        if len(self._keys) > KEPT:
            del self._keys[next(iter(self._keys))]

    def forgive(self, request: Request) -> None:
        """A request succeeded."""
        if self._keys:
            self._keys.pop(request.resource, None)
            self._keys.pop(_account(request), None)


def _account(request: Request) -> Hashable:
    return "account", request.account
