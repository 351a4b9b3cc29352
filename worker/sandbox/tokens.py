"""Tokens of the client-credentials grant: issued for one account, short-lived, revocable."""

import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from worker.sandbox.answer import NO_STORE, SandboxAnswer, token_error

WRITE = "ott_channels_write"
SCOPES = ("ott_channels_read", WRITE, "ott_chat_messaging_read", "ott_chat_messaging_send")
_KEPT = 10_000
"""Tokens before the expired ones are thrown away."""


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token in force until `ends_at` (monotonic clock); `account` None is the default one."""

    account: str | None
    ends_at: float
    scopes: tuple[str, ...]


class Tokens:
    """Issues tokens to one client.

    `account_ids` are the business units that the client may name, None for any. `lifetime` is in seconds;
    `rest_url` is the `rest_instance_url` that is told.
    """

    def __init__(
        self, client_id: str, client_secret: str, account_ids: Collection[str] | None, lifetime: float
    ) -> None:
        self._client_id = client_id.encode()
        self._client_secret = client_secret.encode()
        self._account_ids = account_ids
        self._lifetime = lifetime
        self._tokens: dict[str, IssuedToken] = {}
        self.rest_url = ""

    def issue(
        self,
        request: Mapping[str, Any],
        now: float,
        lifetime: float | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> SandboxAnswer:
        """Answers the parsed body of `POST /v2/token`.

        A `lifetime` makes the token end then, although its `expires_in` does not say so. `scopes` are all by
        default.
        """
        if request.get("grant_type") != "client_credentials":
            return token_error(400, "unsupported_grant_type", 'Use "client_credentials" as the grant_type.')
        if not self._is_client(request):
            return token_error(
                401,
                "invalid_client",
                "Invalid client ID or client secret. Use those in Marketing Cloud Installed Packages.",
            )
        account = account_of(request)
        if account is not None and self._account_ids is not None and account not in self._account_ids:
            return token_error(400, "invalid_request", "The account_id is not one that this client may use.")
        lifetime = self._lifetime if lifetime is None else lifetime
        return self._issue(IssuedToken(account, now + lifetime, SCOPES if scopes is None else scopes), now)

    def find(self, authorization: str | None, now: float) -> IssuedToken | None:
        """The token in force that an `Authorization` header bears."""
        scheme, _, value = (authorization or "").partition(" ")
        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        return token if token and now < token.ends_at else None

    def revoke(self, account: str | None = None) -> int:
        """Ends the tokens of an account, or all; tells how many."""
        doomed = [
            value for value, token in self._tokens.items() if account is None or token.account == account
        ]
        for value in doomed:
            del self._tokens[value]
        return len(doomed)

    def _is_client(self, request: Mapping[str, Any]) -> bool:
        return _equal(request.get("client_id"), self._client_id) and _equal(
            request.get("client_secret"), self._client_secret
        )

    def _issue(self, token: IssuedToken, now: float) -> SandboxAnswer:
        if len(self._tokens) >= _KEPT:
            self._tokens = {value: token for value, token in self._tokens.items() if now < token.ends_at}
        value = secrets.token_urlsafe(64)
        self._tokens[value] = token
        document = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": max(1, round(self._lifetime) - 1),
            "scope": " ".join(token.scopes),
            "rest_instance_url": f"{self.rest_url}/",
        }
        return SandboxAnswer(200, document, NO_STORE)


def account_of(request: Mapping[str, Any]) -> str | None:
    """The business unit that a token request names; the real API takes a number or its digits."""
    account = request.get("account_id")
    return None if account in (None, "") else str(account)


def _equal(given: object, expected: bytes) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), expected)
