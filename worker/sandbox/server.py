"""The sandbox as an HTTP server: the two endpoints of Marketing Cloud, and those that control the sandbox."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from aiohttp import web
from pydantic import ValidationError

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.registration import Registration, Rejection, validate
from worker.contract.settlement import Resource
from worker.contract.words import AGGREGATE, MALFORMED
from worker.sandbox.answers import json_answer, rest_error, token_error
from worker.sandbox.faults import FAULTS, CarryOut, Ending, Faults, ShortToken
from worker.sandbox.records import Call, History, IssuedToken, Tokens, account_of, masked
from worker.serving import HttpServer

TOKEN = "/v2/token"  # noqa: S105
REST = "/ott/"
REGISTRATION = "/ott/v1/registration"
CONTROL = "/sandbox/"
JSON = "application/json"
MAX_BODY = 16 * 1024 * 1024
CALLS_SHOWN = 1000
CONNECTION_LIMIT = 10_000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sandbox:
    """A local Marketing Cloud, up while the context lasts.

    `port` 0 takes a free one. `account_ids` are the business units that a token may be asked for, None
    for any. `token_lifetime` is in seconds. `seed` makes random faults repeatable. The newest
    `history_limit` calls are kept. Entering raises SettingsError if the address cannot be listened on.
    `url` is where it listens; token and REST URL are the same.

    `history`, `registrations` (the newest call for each resource) and `faults` may be used directly, or over
    HTTP under `/sandbox`.
    """

    def __init__(
        self,
        *,
        client_id: str = "sandbox",
        client_secret: str = "sandbox",  # noqa: S107
        host: str = "127.0.0.1",
        port: int = 0,
        account_ids: Collection[str] | None = None,
        token_lifetime: float = 1080,
        seed: int = 0,
        history_limit: int = 100_000,
    ) -> None:
        self.history = History(history_limit)
        self.registrations: dict[Resource, Call] = {}
        self.faults = Faults(seed)
        self._tokens = Tokens(client_id, client_secret, account_ids, token_lifetime)
        self._host = host
        self._port = port
        self._server = HttpServer(
            self._application(), CONNECTION_LIMIT, handler_cancellation=True, shutdown_timeout=0.1
        )
        self.url = ""

    def heal(self) -> None:
        """Ends all faults."""
        self.faults.heal()

    def revoke_tokens(self, account: str | None = None) -> None:
        """Ends the tokens of an account, or all, at once."""
        self._tokens.revoke(account)

    async def __aenter__(self) -> Self:
        named = f"--host and --port ({self._host}:{self._port})"
        url = await self._server.start(self._host, self._port, named)
        self.url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        self._tokens.rest_url = self.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
        for method, path, handler in (
            ("POST", TOKEN, self._serve("token", self._token)),
            ("POST", REGISTRATION, self._serve("registration", self._register)),
            ("GET", f"{CONTROL}faults", self._show_faults),
            ("POST", f"{CONTROL}faults", self._add_faults),
            ("DELETE", f"{CONTROL}faults", self._heal),
            ("GET", f"{CONTROL}history", self._show_history),
            ("GET", f"{CONTROL}registrations", self._show_registrations),
            ("*", "/{path:.*}", _unknown),
        ):
            application.router.add_route(method, path, handler)
        return application

    def _serve(self, name: str, endpoint: Callable[[web.Request, bytes, Call], CarryOut]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            call = self.history.begin(request.method, request.path, name)
            carry_out = endpoint(request, body, call)
            self.history.keep(call)
            status = None
            try:
                response = await self._answer(request, call, carry_out)
                status = response.status
            finally:
                self.history.end(call, status)
            return response

        return handle

    async def _answer(self, request: web.Request, call: Call, carry_out: CarryOut) -> web.StreamResponse:
        if self.faults:
            if delay := self.faults.delay(call):
                call.fault = "latency"
                await asyncio.sleep(delay)
            if ending := self.faults.hit(call, Ending):
                call.fault = ending.kind
                return await ending.answer(request, carry_out)
        return carry_out()

    def _token(self, _: web.Request, body: bytes, call: Call) -> CarryOut:
        try:
            document = parse_object(body)
        except MalformedBody:
            return lambda: token_error(400, "invalid_request", "The request body must be a JSON object.")
        call.account = account_of(document)

        def issue() -> web.Response:
            short = self.faults.hit(call, ShortToken)
            return self._tokens.issue(document, short.seconds if short else None)

        return issue

    def _register(self, request: web.Request, body: bytes, call: Call) -> CarryOut:
        call.sha256 = hashlib.sha256(body).hexdigest()
        self._bearer(request, call)
        try:
            document = parse_object(body)
        except MalformedBody as problem:
            verdict: Registration | Rejection = Rejection("invalid", str(problem), MALFORMED)
        else:
            verdict = validate(document)
            call.masked = masked(document)
        call.platform, call.resource_id = verdict.platform, verdict.resource_id
        return lambda: self._refused(request, call) or self._upsert(call, verdict)

    def _bearer(self, request: web.Request, call: Call) -> IssuedToken | None:
        token = self._tokens.find(request.headers.get("Authorization"))
        call.account = token.account if token else None
        return token

    def _refused(self, request: web.Request, call: Call) -> web.Response | None:
        # Checked when the call is carried out: a token may end while the call waits.
        if self._bearer(request, call) is None:
            return rest_error(401, "Not Authorized", 40004)
        return None if request.content_type == JSON else rest_error(415, "Unsupported Media Type")

    def _upsert(self, call: Call, verdict: Registration | Rejection) -> web.Response:
        if isinstance(verdict, Rejection):
            return rest_error(400, verdict.message, verdict.errorcode, validationErrors=verdict.errors)
        self.registrations[Resource(call.account, verdict.platform, verdict.resource_id)] = call
        return web.Response(status=201)

    async def _show_faults(self, _: web.Request) -> web.Response:
        return json_answer(200, self.faults.as_json())

    async def _add_faults(self, request: web.Request) -> web.Response:
        body = (await request.read()).strip()
        try:
            given = FAULTS.validate_json(b"[%b]" % body if body.startswith(b"{") else body)
        except ValidationError as invalid:
            return rest_error(400, _explain(invalid), AGGREGATE)
        self.faults.add(*given)
        return json_answer(201, self.faults.as_json())

    async def _heal(self, _: web.Request) -> web.Response:
        self.heal()
        return web.Response(status=204)

    async def _show_history(self, _: web.Request) -> web.Response:
        return json_answer(200, [call.as_json() for call in [*self.history][-CALLS_SHOWN:]])

    async def _show_registrations(self, _: web.Request) -> web.Response:
        return json_answer(200, [call.as_json() for call in self.registrations.values()])


async def _unknown(request: web.Request) -> web.StreamResponse:
    if request.path in (TOKEN, REGISTRATION):
        return rest_error(405, "Method Not Allowed")
    if request.path.startswith(REST):
        return rest_error(596, "Service Not Found")  # as the gateway before the REST API says
    return rest_error(404, "Not Found")


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page in a browser on the same machine cannot use the control endpoints: they answer only to a
    name that no page can have, and take only JSON, for which a browser would ask first."""
    if request.path.startswith(CONTROL):
        if not _is_own(request.host):
            return rest_error(403, "The sandbox is controlled by its own address only")
        if request.can_read_body and request.content_type != JSON:
            return rest_error(415, f"Send JSON, with the header Content-Type: {JSON}")
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
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'faults'}: {each['msg']}" for each in details)
