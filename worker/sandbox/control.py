"""The control endpoints: faults, history, registrations and tokens over HTTP."""

import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import ValidationError

from worker.sandbox.answer import SandboxAnswer, respond, rest_error
from worker.sandbox.faults import FAULTS, Faults
from worker.sandbox.records import History, Registry
from worker.sandbox.tokens import Tokens

CONTROL = "/sandbox/"
DEFAULT_LIMIT = 1000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request, bytes], SandboxAnswer]


def add_routes(
    application: web.Application, history: History, registrations: Registry, faults: Faults, tokens: Tokens
) -> None:
    """Adds the endpoints that show and change the sandbox's state.

    A web page in a browser on the same machine cannot use them: they answer only to a name that no page can
    have, and take only JSON, for which a browser would ask first."""

    def add_faults(_: web.Request, body: bytes) -> SandboxAnswer:
        try:
            given = FAULTS.validate_json(b"[%b]" % body if body.startswith(b"{") else body)
        except ValidationError as invalid:
            return rest_error(400, _explain(invalid), 10006)
        faults.add(*given)
        return SandboxAnswer(201, faults.as_json())

    def show_history(request: web.Request, _: bytes) -> SandboxAnswer:
        try:
            after = int(request.query.get("after", 0))
            limit = int(request.query.get("limit", DEFAULT_LIMIT))
        except ValueError:
            return rest_error(400, "after and limit must be whole numbers", 10001)
        calls = [call for call in history if call.seq > after]
        shown = calls[:limit] if "after" in request.query else calls[-limit:]
        return SandboxAnswer(200, [call.as_json() for call in shown if limit > 0])

    def revoke_tokens(request: web.Request, _: bytes) -> SandboxAnswer:
        return SandboxAnswer(200, {"revoked": tokens.revoke(request.query.get("account"))})

    routes: tuple[tuple[str, str, Endpoint], ...] = (
        ("GET", "faults", lambda *_: SandboxAnswer(200, faults.as_json())),
        ("POST", "faults", add_faults),
        ("DELETE", "faults", _clearing(faults.heal)),
        ("GET", "history", show_history),
        ("DELETE", "history", _clearing(history.clear)),
        ("GET", "registrations", lambda *_: SandboxAnswer(200, registrations.as_json())),
        ("DELETE", "registrations", _clearing(registrations.clear)),
        ("DELETE", "tokens", revoke_tokens),
    )
    application.middlewares.append(_guard)
    for method, name, endpoint in routes:
        application.router.add_route(method, CONTROL + name, _handler(endpoint))


def _clearing(clear: Callable[[], None]) -> Endpoint:
    def endpoint(*_: object) -> SandboxAnswer:
        clear()
        return SandboxAnswer(204)

    return endpoint


def _handler(endpoint: Endpoint) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return respond(endpoint(request, (await request.read()).strip()))

    return handle


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


def _explain(invalid: ValidationError) -> str:
    details = invalid.errors(include_url=False, include_context=False, include_input=False)
    places = (".".join(map(str, detail["loc"])) or "faults" for detail in details)
    return "; ".join(f"{place}: {detail['msg']}" for place, detail in zip(places, details, strict=True))
