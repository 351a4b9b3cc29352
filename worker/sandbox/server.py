"""The sandbox's HTTP server: the two endpoints of Marketing Cloud, and those that control the sandbox."""

import asyncio
import hashlib
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from itertools import count
from typing import Any, Self

from aiohttp import web
from pydantic import ValidationError

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.registration import Registration, Rejection, validate
from worker.contract.settlement import Resource
from worker.contract.words import AGGREGATE, MALFORMED
from worker.sandbox.faults import FAULTS, Call, Faults, History, json_answer, masked, rest_error
from worker.serving import HttpServer, address_of, host_name

TOKEN = "/v2/token"  # noqa: S105
REST = "/ott/"
REGISTRATION = "/ott/v1/registration"
CONTROL = "/sandbox/"
JSON = "application/json"
MAX_BODY = 16 * 1024 * 1024
CALLS_KEPT = 100_000
CALLS_SHOWN = 1000
CONNECTION_LIMIT = 10_000
SCOPES = "ott_channels_read ott_channels_write ott_chat_messaging_read ott_chat_messaging_send"
ERROR_URI = "https://developer.salesforce.com/docs"  # what the real one sends
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request, Call, dict[str, Any], str], web.Response]


class Sandbox:
    """A local Marketing Cloud, which runs within the context.

    `port` 0 chooses a free one. `account_ids` are the business units that may have tokens, None for any.
    `token_lifetime` is in seconds. `seed` makes random faults repeatable. Entering raises SettingsError if
    the address cannot be used. `url` is both the token and the REST URL.

    `history`, `registrations` (the newest call for each resource) and `faults` may be used directly; history
    and faults also over HTTP under `/sandbox`."""

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
    ) -> None:
        self.history = History(maxlen=CALLS_KEPT)
        self.registrations: dict[Resource, Call] = {}
        self.faults = Faults(seed)
        self.url = ""
        self._client = {"client_id": client_id, "client_secret": client_secret}
        self._account_ids = account_ids
        self._token_lifetime = token_lifetime
        self._tokens: dict[str, tuple[str | None, float]] = {}  # account, and when it ends
        self._numbers = count(1)
        self._in_flight: Counter[Resource | None] = Counter()
        self._address = host, port
        self._server = HttpServer(
            self._application(), CONNECTION_LIMIT, handler_cancellation=True, shutdown_timeout=0.1
        )

    def heal(self) -> None:
        """Remove all faults. Calls that hang still hang until their client closes the connection."""
        self.faults.clear()

    def revoke_tokens(self) -> None:
        """Invalidate all tokens."""
        self._tokens.clear()

    async def __aenter__(self) -> Self:
        host, port = self._address
        url = await self._server.start(host, port, f"--host and --port ({host}:{port})")
        self.url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
        faults = f"{CONTROL}faults"
        application.add_routes(
            [
                web.post(TOKEN, partial(self._serve, "token", self._issue)),
                web.post(REGISTRATION, partial(self._serve, "registration", self._register)),
                web.get(faults, self._show_faults),
                web.post(faults, self._add_faults),
                web.delete(faults, self._heal),
                web.get(f"{CONTROL}history", self._show_history),
            ]
        )
        return application

    async def _serve(self, name: str, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
        body, document, problem = await request.read(), dict[str, Any](), ""
        call = Call(next(self._numbers), time.time(), request.path, name)
        try:
            document = parse_object(body)
        except MalformedBody as error:
            problem = str(error)
        if name == "token":
            call.account = str(document.get("account_id") or "") or None  # a number or its digits
        else:
            verdict = validate(document)
            token = self._bearer(request)
            call.account, call.masked = token and token[0], masked(document)
            call.platform, call.resource_id = verdict.platform, verdict.resource_id
            call.sha256 = hashlib.sha256(body).hexdigest()
        resource = call.resource
        call.in_flight = self._in_flight[resource]
        self._in_flight[resource] += 1
        self.history.append(call)
        try:
            response = await self._answer(request, call, partial(endpoint, request, call, document, problem))
            call.status = response.status
        finally:
            call.finished_at = time.time()
            self._in_flight[resource] -= 1
        return response

    async def _answer(
        self, request: web.Request, call: Call, carry_out: Callable[[], web.Response]
    ) -> web.StreamResponse:
        if delay := self.faults.delay(call):
            call.fault = "latency"
            await asyncio.sleep(delay)
        if fault := next(self.faults.hits(call, "status", "hang", "reset", "half"), None):
            call.fault = fault.kind
            return await fault.answer(request, carry_out)
        return carry_out()

    def _issue(self, _: web.Request, call: Call, document: dict[str, Any], problem: str) -> web.Response:
        if problem:
            return _token_error(400, "invalid_request", problem)
        if document.get("grant_type") != "client_credentials":
            return _token_error(400, "unsupported_grant_type", 'Use "client_credentials" as the grant_type.')
        if any(document.get(name) != expected for name, expected in self._client.items()):
            return _token_error(
                401,
                "invalid_client",
                "Invalid client ID or client secret. Use those in Marketing Cloud Installed Packages.",
            )
        if call.account and self._account_ids is not None and call.account not in self._account_ids:
            return _token_error(400, "invalid_request", "The account_id is not one that this client may use.")
        value, lifetime = secrets.token_urlsafe(64), self._token_lifetime
        short = next(self.faults.hits(call, "short_token"), None)
        self._tokens[value] = call.account, time.monotonic() + (short.seconds if short else lifetime)
        document = {
            "access_token": value,
            "token_type": "Bearer",
            "expires_in": max(1, round(lifetime) - 1),
            "scope": SCOPES,
            "rest_instance_url": f"{self.url}/",
        }
        return json_answer(200, document, {"Cache-Control": "no-store"})

    def _bearer(self, request: web.Request) -> tuple[str | None, float] | None:
        """The account of the call's token and when it expires; None without a valid token."""
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        token = self._tokens.get(value.strip()) if scheme.lower() == "bearer" else None
        return token if token and time.monotonic() < token[1] else None

    def _register(
        self, request: web.Request, call: Call, document: dict[str, Any], problem: str
    ) -> web.Response:
        # Checked now: the token may have expired while the call waited.
        token = self._bearer(request)
        if token is None:
            return rest_error(401, "Not Authorized", 40004)
        if request.content_type != JSON:
            return rest_error(415, "Unsupported Media Type")
        verdict: Registration | Rejection = validate(document)
        if problem:
            verdict = Rejection("invalid", problem, MALFORMED)
        if isinstance(verdict, Rejection):
            return rest_error(400, verdict.message, verdict.errorcode, validationErrors=verdict.errors)
        self.registrations[Resource(token[0], verdict.platform, verdict.resource_id)] = call
        return web.Response(status=201)

    async def _show_faults(self, _: web.Request) -> web.Response:
        return json_answer(200, self.faults.as_json())

    async def _add_faults(self, request: web.Request) -> web.Response:
        body = (await request.read()).strip()
        try:
            faults = FAULTS.validate_json(b"[%b]" % body if body.startswith(b"{") else body)
        except ValidationError as invalid:
            return rest_error(400, _explain(invalid), AGGREGATE)
        self.faults.add(*faults)
        return json_answer(201, self.faults.as_json())

    async def _heal(self, _: web.Request) -> web.Response:
        self.heal()
        return web.Response(status=204)

    async def _show_history(self, _: web.Request) -> web.Response:
        return json_answer(200, [call.as_json() for call in [*self.history][-CALLS_SHOWN:]])


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep web pages from the control endpoints: these answer only to host names that no page can have, and
    accept only JSON, for which a browser sends a preflight request first."""
    if request.path.startswith(CONTROL):
        if not _is_own(request.host):
            return rest_error(403, "The sandbox is controlled by its own address only")
        if request.can_read_body and request.content_type != JSON:
            return rest_error(415, f"Send JSON, with the header Content-Type: {JSON}")
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status == 404 and request.path.startswith(REST):
            return rest_error(596, "Service Not Found")  # as the gateway of the REST API answers
        return rest_error(error.status, error.reason)


def _is_own(host: str) -> bool:
    """Whether a Host header names an address, localhost or a container. The name of a page that uses DNS
    rebinding has dots."""
    name = host_name(host)
    return address_of(name) is not None or bool(re.fullmatch(r"[a-z0-9_-]+(\.localhost)?", name))


def _token_error(status: int, error: str, description: str) -> web.Response:
    """An OAuth 2.0 error in the form of `/v2/token`."""
    document = {"error": error, "error_description": description, "error_uri": ERROR_URI}
    return json_answer(status, document, {"Cache-Control": "no-store"})


def _explain(invalid: ValidationError) -> str:
    details = invalid.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'faults'}: {each['msg']}" for each in details)
