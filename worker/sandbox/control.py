"""The control endpoints: faults, history and registrations over HTTP."""

import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import ValidationError

from worker.sandbox.answer import SandboxAnswer, rest_error
from worker.sandbox.faults import FAULTS, Faults
from worker.sandbox.history import History
from worker.sandbox.openapi import openapi
from worker.sandbox.registry import Registry
from worker.sandbox.tokens import Tokens
from worker.sandbox.wire import respond

CONTROL = "/sandbox/"
DEFAULT_LIMIT = 1000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes(
    application: web.Application, history: History, registrations: Registry, faults: Faults, tokens: Tokens
) -> None:
    """Adds the endpoints that show and change the sandbox's state.

    A web page in a browser on the same machine cannot use them: they answer only to a name that no page can
    have, and take only JSON, for which a browser would ask first."""
    control = _Control(history, registrations, faults, tokens)
    application.middlewares.append(_guard)
    application.add_routes(
        [
            web.get("/sandbox/faults", control.show_faults),
            web.post("/sandbox/faults", control.add_faults),
            web.delete("/sandbox/faults", control.heal),
            web.get("/sandbox/history", control.show_history),
            web.delete("/sandbox/history", control.clear_history),
            web.get("/sandbox/registrations", control.show_registrations),
            web.delete("/sandbox/registrations", control.clear_registrations),
            web.delete("/sandbox/tokens", control.revoke_tokens),
            web.get("/openapi.json", control.show_openapi),
        ]
    )


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.path.startswith(CONTROL):
        if not _is_own(request.host):
            return respond(rest_error(403, "The sandbox is controlled by its own address only"))
        if request.can_read_body and request.content_type != "application/json":
            return respond(rest_error(415, "Send JSON, with the header Content-Type: application/json"))
    return await handler(request)


def _is_own(host: str) -> bool:
    """Whether a Host header names an address, localhost or a container. A page whose own name was made to
    lead here (DNS rebinding) has a name with dots."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ip_address(name)
    except ValueError:
        return bool(re.fullmatch(r"[a-z0-9_-]+(\.localhost)?", name))
    return True


class _Control:
    def __init__(self, history: History, registrations: Registry, faults: Faults, tokens: Tokens) -> None:
        self._history = history
        self._registrations = registrations
        self._faults = faults
        self._tokens = tokens

    async def show_faults(self, _: web.Request) -> web.Response:
        return respond(SandboxAnswer(200, self._faults.as_json()))

    async def add_faults(self, request: web.Request) -> web.Response:
        body = (await request.read()).strip()
        try:
            faults = FAULTS.validate_json(b"[%b]" % body if body.startswith(b"{") else body)
        except ValidationError as invalid:
            return respond(rest_error(400, _explain(invalid), 10006))
        self._faults.add(*faults)
        return respond(SandboxAnswer(201, self._faults.as_json()))

    async def heal(self, _: web.Request) -> web.Response:
        self._faults.heal()
        return respond(SandboxAnswer(204))

    async def show_history(self, request: web.Request) -> web.Response:
        try:
            after, limit = (int(request.query.get(name, default)) for name, default in _HISTORY_DEFAULTS)
        except ValueError:
            return respond(rest_error(400, "after and limit must be whole numbers", 10001))
        calls = [call for call in self._history if call.seq > after]
        shown = calls[:limit] if "after" in request.query else calls[-limit:]
        return respond(SandboxAnswer(200, [call.as_json() for call in shown if limit > 0]))

    async def clear_history(self, _: web.Request) -> web.Response:
        self._history.clear()
        return respond(SandboxAnswer(204))

    async def show_registrations(self, _: web.Request) -> web.Response:
        registrations: list[dict[str, Any]] = [
            {
                "account": key.account,
                "platform": key.platform,
                "resourceId": key.resource_id,
                "seq": entry.seq,
                "updates": entry.updates,
                "body": entry.body,
            }
            for key, entry in self._registrations.items()
        ]
        return respond(SandboxAnswer(200, registrations))

    async def clear_registrations(self, _: web.Request) -> web.Response:
        self._registrations.clear()
        return respond(SandboxAnswer(204))

    async def revoke_tokens(self, request: web.Request) -> web.Response:
        return respond(SandboxAnswer(200, {"revoked": self._tokens.revoke(request.query.get("account"))}))

    async def show_openapi(self, request: web.Request) -> web.Response:
        return respond(SandboxAnswer(200, openapi(str(request.url.origin()))))


_HISTORY_DEFAULTS = (("after", "0"), ("limit", str(DEFAULT_LIMIT)))


def _explain(invalid: ValidationError) -> str:
    details = invalid.errors(include_url=False, include_context=False, include_input=False)
    places = (".".join(map(str, detail["loc"])) or "faults" for detail in details)
    return "; ".join(f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True))
