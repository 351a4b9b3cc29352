"""The endpoints of Marketing Cloud, without HTTP: a request as plain data in, an answer out."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.contract.registration import (
    PLATFORMS,
    PLEASE_FIX,
    FieldError,
    MalformedBody,
    Registration,
    parse_object,
    validate,
)
from worker.contract.words import AGGREGATE, INVALID_VALUE, MALFORMED, WRONG_TYPE
from worker.sandbox.answer import (
    INSUFFICIENT_SCOPE,
    NO_SUCH_RESOURCE,
    NOT_AUTHORIZED,
    UNSUPPORTED_MEDIA_TYPE,
    SandboxAnswer,
    refused,
    token_error,
    validation_error,
)
from worker.sandbox.faults import Faults
from worker.sandbox.history import Call
from worker.sandbox.registry import Key, Registry, listed, masked, public_view
from worker.sandbox.tokens import WRITE, IssuedToken, Tokens, account_of

REGISTRATION = "/ott/v1/registration"
DEFAULT_PAGE_SIZE = 50

CarryOut = Callable[[], SandboxAnswer]
"""Carries out the call and returns its answer."""


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """The parts of an HTTP request that the endpoints use."""

    body: bytes = b""
    content_type: str = ""
    authorization: str | None = None
    platform: str | None = None
    resource_id: str | None = None
    page: str = "1"
    page_size: str = str(DEFAULT_PAGE_SIZE)


class Endpoints:
    """Each method notes in `call` what the call is about, and returns what carries it out."""

    def __init__(self, tokens: Tokens, registry: Registry, faults: Faults) -> None:
        self._tokens = tokens
        self._registry = registry
        self._faults = faults

    def token(self, request: SandboxRequest, call: Call) -> CarryOut:
        """`POST /v2/token`"""
        try:
            document = parse_object(request.body)
        except MalformedBody:
            return lambda: token_error(400, "invalid_request", "The request body must be a JSON object.")
        call.account = account_of(document)
        return lambda: self._tokens.issue(
            document, time.monotonic(), self._faults.token_lifetime(call), self._faults.token_scopes(call)
        )

    def register(self, request: SandboxRequest, call: Call) -> CarryOut:
        """`POST /ott/v1/registration`"""
        call.sha256 = hashlib.sha256(request.body).hexdigest()
        self._bearer(request, call)
        try:
            document = parse_object(request.body)
        except MalformedBody as problem:
            answer = validation_error(str(problem), MALFORMED)
            return lambda: self._checked(request, call) or answer
        verdict = validate(document)
        call.masked = masked(document)
        call.platform, call.resource_id = verdict.platform, verdict.resource_id
        if not isinstance(verdict, Registration):
            answer = refused(verdict)
            return lambda: self._checked(request, call) or answer
        return lambda: self._checked(request, call) or self._upsert(call, verdict)

    def one(self, request: SandboxRequest, call: Call) -> CarryOut:
        """`GET /ott/v1/registration/{platform}/{id}`"""
        self._bearer(request, call)
        call.platform, call.resource_id = request.platform, request.resource_id
        return lambda: self._look_up(request)

    def page(self, request: SandboxRequest, call: Call) -> CarryOut:
        """`GET /ott/v1/registration/{platform}`"""
        self._bearer(request, call)
        call.platform = request.platform
        return lambda: self._list(request)

    def _bearer(self, request: SandboxRequest, call: Call) -> IssuedToken | None:
        token = self._tokens.find(request.authorization, time.monotonic())
        call.account = token.account if token else None
        return token

    def _checked(self, request: SandboxRequest, call: Call) -> SandboxAnswer | None:
        # Checked again when the call is carried out: a token may end while the call waits.
        token = self._bearer(request, call)
        if token is None:
            return NOT_AUTHORIZED
        if WRITE not in token.scopes:
            return INSUFFICIENT_SCOPE
        return None if request.content_type == "application/json" else UNSUPPORTED_MEDIA_TYPE

    def _upsert(self, call: Call, registration: Registration) -> SandboxAnswer:
        key = Key(call.account, registration.platform, registration.resource_id)
        self._registry.upsert(key, call.masked or b"", call.seq)
        return SandboxAnswer(201)

    def _look_up(self, request: SandboxRequest) -> SandboxAnswer:
        token = self._tokens.find(request.authorization, time.monotonic())
        if token is None:
            return NOT_AUTHORIZED
        entry = self._registry.get(Key(token.account, request.platform or "", request.resource_id or ""))
        return SandboxAnswer(200, public_view(entry)) if entry else NO_SUCH_RESOURCE

    def _list(self, request: SandboxRequest) -> SandboxAnswer:
        token = self._tokens.find(request.authorization, time.monotonic())
        if token is None:
            return NOT_AUTHORIZED
        platform = request.platform or ""
        if platform not in PLATFORMS:
            error = FieldError("OttPlatformName is invalid", INVALID_VALUE)
            return validation_error(PLEASE_FIX, AGGREGATE, [error])
        page, size = _positive(request.page), _positive(request.page_size)
        if page is None or size is None:
            name = "$page" if page is None else "$pagesize"
            return validation_error(PLEASE_FIX, AGGREGATE, [FieldError(f"{name} is invalid", WRONG_TYPE)])
        entries = self._registry.of(token.account, platform)
        shown = entries[(page - 1) * size : page * size]
        return SandboxAnswer(
            200,
            {
                "count": len(entries),
                "page": page,
                "pageSize": size,
                "links": _links(platform, page, size, len(entries)),
                "items": [listed(entry) for entry in shown],
            },
        )


def _positive(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0 else None


def _links(platform: str, page: int, size: int, count: int) -> dict[str, Any]:
    def link(number: int) -> dict[str, str]:
        return {"href": f"{REGISTRATION}/{platform}?$page={number}&$pagesize={size}"}

    links = {"self": link(page)}
    if page > 1:
        links["previous"] = link(page - 1)
    if page * size < count:
        links["next"] = link(page + 1)
    return links
