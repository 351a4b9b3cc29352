"""Access tokens and the answers of the token endpoint (`POST /v2/token`, contract §6), as plain data."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.contract.secrets import SecretMask
from worker.errors import WorkerError
from worker.events import TokenResult
from worker.marketing_cloud.answer import Cause, json_object, read_answer
from worker.marketing_cloud.response import Response
from worker.settings.checks import parsed_url

REFRESH_AHEAD = 120.0  # seconds before a token's expiry at which the next one is fetched
REFRESH_SHARE = 0.25  # share of the lifetime of a short-lived token, instead
DEFAULT_LIFE = 1080.0  # seconds
DESCRIPTION_LIMIT = 300  # characters of an error's description
# Seconds that requests of one account wait because of a hint: meanwhile they use a part of the prefetch.
LONGEST_ACCOUNT_HINT = 10.0
REST_DOMAIN = ".marketingcloudapis.com"
# The error codes of OAuth 2.0 (RFC 6749 §5.2). Others are quoted as text.
_OAUTH_ERRORS = {
    "invalid_client": Cause.INVALID_CLIENT,
    "unauthorized_client": Cause.UNAUTHORIZED_CLIENT,
    "invalid_scope": Cause.INVALID_SCOPE,
    "invalid_request": Cause.TOKEN_REFUSED,
    "invalid_grant": Cause.TOKEN_REFUSED,
}
_PASSING = frozenset({408, 425, 429})


@dataclass(eq=False)
class TokenTrouble(WorkerError):
    """No token can be obtained at present, not even for the default account: an outage.

    `summary` is the worker's own text, `detail` the endpoint's, masked. `retry_after` is the endpoint's hint
    in seconds, or None. `status` is the endpoint's HTTP status, None without an answer."""

    cause: Cause
    summary: str
    detail: str = ""
    retry_after: float | None = None
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.summary}: {self.detail}" if self.detail else self.summary

    @property
    def result(self) -> TokenResult:
        if self.cause is Cause.INVALID_CLIENT:
            return "invalid_client"
        return "refused" if self.cause.is_refusal else "failed"


class AccountTrouble(WorkerError):
    """No token can be obtained for this account at present, but for the default account. `retry_after` is the
    endpoint's hint in seconds, or None."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = None if retry_after is None else min(retry_after, LONGEST_ACCOUNT_HINT)


class AccountRefused(AccountTrouble):
    """Marketing Cloud refuses this account."""


class AccountsCrowded(AccountTrouble):
    """Too many requests wait for tokens of accounts other than the default."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token and the URL that it is valid for. Its repr is masked. `scope` holds its permissions,
    None if the endpoint does not name them. Times are monotonic seconds."""

    value: str
    rest_url: str
    scope: frozenset[str] | None
    asked_at: float
    refresh_at: float
    expires_at: float

    def __repr__(self) -> str:
        return "Token(***)"


def read_token(
    response: Response, asked_at: float, rest_url: str | None, secrets: Iterable[str] = ()
) -> Token:
    """The token in an answer of the token endpoint. Without `rest_url` the answer must name one. `secrets`
    are masked in the endpoint's error text. Raises TokenTrouble."""
    status = response.status
    answer = read_answer(response, datetime.now(UTC))
    if answer.is_page:
        why = f"the token endpoint answered {status} with a web page (text/html)"
        raise TokenTrouble(Cause.PAGE, why, status=status)
    document = json_object(response.body)
    is_success = 200 <= status < 300
    if (400 <= status < 500 and status not in _PASSING) or (is_success and _is_error(document)):
        error = str(document.get("error"))
        known = f" {error}" if error in _OAUTH_ERRORS else ""
        detail = _error_detail(document, secrets)
        cause = _OAUTH_ERRORS.get(error, Cause.TOKEN_REFUSED)
        raise TokenTrouble(cause, f"the token was refused: {status}{known}", detail, status=status)
    if not is_success:
        detail, why = _error_detail(document, secrets), f"the token endpoint answered {status}"
        raise TokenTrouble(Cause.ERROR, why, detail, answer.retry_after, status)
    value = document.get("access_token")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise TokenTrouble(Cause.NO_TOKEN, "the token endpoint's answer is not a token", status=status)
    life = _life(document.get("expires_in"))
    ahead = min(REFRESH_AHEAD, life * REFRESH_SHARE)
    scope = document.get("scope")
    return Token(
        value=value,
        rest_url=rest_url or _instance_url(document.get("rest_instance_url")),
        scope=frozenset(scope.split()) if isinstance(scope, str) else None,
        asked_at=asked_at,
        refresh_at=asked_at + life - ahead,
        expires_at=asked_at + life,
    )


def _is_error(document: dict[str, object]) -> bool:
    return "access_token" not in document and any(document.get(name) for name in ("error", "errorcode"))


def _error_detail(document: dict[str, object], secrets: Iterable[str]) -> str:
    """`error`, `error_description` and `message` as one line of text, without `secrets`."""
    error = document.get("error")
    parts = [None if str(error) in _OAUTH_ERRORS else error]  # the summary names a known one
    parts += [document.get(name) for name in ("error_description", "message")]
    text = ": ".join(" ".join(part.split()) for part in parts if isinstance(part, str) and part.strip())
    text = "".join(character if character.isprintable() else " " for character in text)
    return SecretMask(secrets).upstream(text)[:DESCRIPTION_LIMIT]


def _life(value: object) -> float:
    """The token's lifetime in seconds."""
    try:
        life = float(value) if isinstance(value, int | float | str) else DEFAULT_LIFE
    except (ValueError, OverflowError):
        return DEFAULT_LIFE
    # NaN is refused too: with it, every request would fetch its own token.
    return life if 0 < life < math.inf else DEFAULT_LIFE


def _instance_url(value: object) -> str:
    """`rest_instance_url`, with or without a scheme, but only under Marketing Cloud's own domain."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            url = parsed_url(value if "://" in value else f"https://{value}", "https")
            is_host_alone = url.user is None and url.explicit_port is None
            if is_host_alone and str(url.raw_host).endswith(REST_DOMAIN):
                return f"https://{url.raw_host}"
    raise TokenTrouble(
        Cause.NO_TOKEN, "the token names no REST URL under marketingcloudapis.com: set OTT_MC_REST_URL"
    )
