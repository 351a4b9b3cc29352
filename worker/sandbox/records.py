"""What the sandbox remembers: the tokens that it issued, every call in the order of arrival, and the newest
registration of each page or channel."""

import hmac
import json
import secrets
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic.alias_generators import to_camel

from worker.contract.json_body import to_json
from worker.contract.platforms import ATTRIBUTES, SECRET_FIELDS
from worker.contract.secrets import MASK
from worker.contract.settlement import Resource
from worker.sandbox.answers import token_answer, token_error

SCOPES = "ott_channels_read ott_channels_write ott_chat_messaging_read ott_chat_messaging_send"
SHOWN = (
    *("seq", "arrived_at", "finished_at", "method", "path", "account", "platform", "resource_id", "status"),
    *("in_flight", "fault", "sha256", "body"),
)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token in force until `ends_at` (monotonic clock); `account` None is the default one."""

    account: str | None
    ends_at: float


class Tokens:
    """Tokens of the client-credentials grant, for one client. `account_ids` are the business units that it
    may name, None for any. `lifetime` is in seconds; `rest_url` is the `rest_instance_url` that is told."""

    def __init__(
        self, client_id: str, client_secret: str, account_ids: Collection[str] | None, lifetime: float
    ) -> None:
        self._client = {"client_id": client_id, "client_secret": client_secret}
        self._account_ids = account_ids
        self._lifetime = lifetime
        self._tokens: dict[str, IssuedToken] = {}
        self.rest_url = ""

    def issue(self, request: Mapping[str, Any], lifetime: float | None) -> web.Response:
        """The answer to the parsed body of `POST /v2/token`. A `lifetime` makes the token end then, although
        its `expires_in` does not say so."""
        if request.get("grant_type") != "client_credentials":
            return token_error(400, "unsupported_grant_type", 'Use "client_credentials" as the grant_type.')
        if not all(_equal(request.get(name), expected) for name, expected in self._client.items()):
            return token_error(
                401,
                "invalid_client",
                "Invalid client ID or client secret. Use those in Marketing Cloud Installed Packages.",
            )
        account = account_of(request)
        if account is not None and self._account_ids is not None and account not in self._account_ids:
            return token_error(400, "invalid_request", "The account_id is not one that this client may use.")
        value = secrets.token_urlsafe(64)
        ends_at = time.monotonic() + (self._lifetime if lifetime is None else lifetime)
        self._tokens[value] = IssuedToken(account, ends_at)
        document = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": max(1, round(self._lifetime) - 1),
            "scope": SCOPES,
            "rest_instance_url": f"{self.rest_url}/",
        }
        return token_answer(200, document)

    def find(self, authorization: str | None) -> IssuedToken | None:
        """The token in force that an `Authorization` header bears."""
        scheme, _, value = (authorization or "").partition(" ")
        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        return token if token and time.monotonic() < token.ends_at else None

    def revoke(self, account: str | None) -> None:
        """End the tokens of an account, or all."""
        self._tokens = {
            value: token
            for value, token in self._tokens.items()
            if account is not None and token.account != account
        }


@dataclass(slots=True, eq=False)
class Call:
    """One call. Times are seconds since the epoch; `finished_at` and `status` are None until it ends.

    A call that ended without an answer (reset, or given up by the client) has `finished_at` and no
    `status`. `in_flight` counts the calls for the same resource that had not ended when this one came.
    `account` is the one of its token, or for a token call the one asked for. `sha256` is of the body as
    it arrived; `fault` is the kind of the fault that hit it.
    """

    seq: int
    arrived_at: float
    method: str
    path: str
    endpoint: str
    account: str | None = None
    platform: str | None = None
    resource_id: str | None = None
    sha256: str | None = None
    masked: bytes = b"{}"
    in_flight: int = 0
    fault: str | None = None
    finished_at: float | None = None
    status: int | None = None

    @property
    def resource(self) -> Resource | None:
        """The resource that the call is about, where it names one."""
        return Resource.named(self.account, self.platform, self.resource_id)

    @property
    def body(self) -> dict[str, Any]:
        """The body of a registration, with `***` for the values of secret fields; empty if unreadable."""
        body: dict[str, Any] = json.loads(self.masked)
        return body

    def as_json(self) -> dict[str, Any]:
        """The call as the control endpoints show it."""
        return {to_camel(name): getattr(self, name) for name in SHOWN}


class History(deque[Call]):
    """The newest calls, oldest first: as many as its `maxlen`."""

    def __init__(self, limit: int) -> None:
        super().__init__(maxlen=limit)
        self._in_flight: Counter[Resource] = Counter()
        self._seq = 0

    @property
    def token_calls(self) -> list[Call]:
        """The calls of `/v2/token`."""
        return [call for call in self if call.endpoint == "token"]

    @property
    def registration_calls(self) -> list[Call]:
        """The calls of `POST /ott/v1/registration`."""
        return [call for call in self if call.endpoint == "registration"]

    def begin(self, method: str, path: str, endpoint: str) -> Call:
        """Numbers a call that has come in."""
        self._seq += 1
        return Call(self._seq, time.time(), method, path, endpoint)

    def keep(self, call: Call) -> None:
        """Adds a call once it is known what it is about."""
        if resource := call.resource:
            call.in_flight = self._in_flight[resource]
            self._in_flight[resource] += 1
        self.append(call)

    def end(self, call: Call, status: int | None) -> None:
        """Notes how a call ended."""
        call.status = status
        call.finished_at = time.time()
        if resource := call.resource:
            self._in_flight[resource] -= 1
            if not self._in_flight[resource]:
                del self._in_flight[resource]


def account_of(request: Mapping[str, Any]) -> str | None:
    """The business unit that a token request names; the real API takes a number or its digits."""
    account = request.get("account_id")
    return None if account in (None, "") else str(account)


def masked(document: Mapping[str, Any]) -> bytes:
    """The JSON of a body with `***` for the values of secret fields."""
    attributes = document.get(ATTRIBUTES)
    if isinstance(attributes, dict):
        shown = {name: MASK if name in SECRET_FIELDS else value for name, value in attributes.items()}
        document = {**document, ATTRIBUTES: shown}
    return to_json(document)


def _equal(given: object, expected: str) -> bool:
    return isinstance(given, str) and hmac.compare_digest(
        given.encode(errors="replace"), expected.encode(errors="replace")
    )
