"""The sandbox as an HTTP server."""

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Self

from aiohttp import web

from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.registration import Registration, Rejection, validate
from worker.contract.settlement import Resource
from worker.contract.words import MALFORMED
from worker.errors import UsageError
from worker.sandbox import control
from worker.sandbox.answer import (
    INSUFFICIENT_SCOPE,
    NO_SUCH_SERVICE,
    NOT_AUTHORIZED,
    UNSUPPORTED_MEDIA_TYPE,
    CarryOut,
    SandboxAnswer,
    misbehave,
    respond,
    rest_error,
    token_error,
    validation_error,
)
from worker.sandbox.faults import Faults
from worker.sandbox.records import Call, History, Registry, masked
from worker.sandbox.tokens import WRITE, IssuedToken, Tokens, account_of

TOKEN = "/v2/token"  # noqa: S105
REST = "/ott/"
REGISTRATION = "/ott/v1/registration"
MAX_BODY = 16 * 1024 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sandbox:
    """A local Marketing Cloud, up while the context lasts.

    `port` 0 takes a free one. `account_ids` are the business units that a token may be asked for, None
    for any. `token_lifetime` is in seconds. `seed` makes random faults repeatable. The newest
    `history_limit` calls are kept. Entering raises UsageError if the address cannot be listened on.

    `history`, `registrations` and `faults` may be used directly, or over HTTP under `/sandbox`.
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
        self.registrations = Registry()
        self.faults = Faults(seed)
        self._tokens = Tokens(client_id, client_secret, account_ids, token_lifetime)
        self._host = host
        self._port = port
        self._runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end; token and REST URL are the same."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104
        return f"http://{host}:{self._port}"

    def heal(self) -> None:
        """Ends all faults."""
        self.faults.heal()

    def revoke_tokens(self, account: str | None = None) -> int:
        """Ends the tokens of an account, or all, at once; tells how many."""
        return self._tokens.revoke(account)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            address = f"{self._host}:{self._port}"
            raise UsageError(f"The sandbox cannot listen on {address}: {why}. Choose another.") from None
        self._port = self._runner.addresses[0][1]
        self._tokens.rest_url = self.url
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(TOKEN, self._serve("token", self._token))
        application.router.add_post(REGISTRATION, self._serve("registration", self._register))
        control.add_routes(application, self.history, self.registrations, self.faults, self._tokens)
        application.router.add_route("*", "/{path:.*}", _unknown)
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
            if ending := self.faults.ending(call):
                call.fault = ending.kind
                return await misbehave(ending, request, carry_out)
        return respond(carry_out())

    def _token(self, _: web.Request, body: bytes, call: Call) -> CarryOut:
        try:
            document = parse_object(body)
        except MalformedBody:
            return lambda: token_error(400, "invalid_request", "The request body must be a JSON object.")
        call.account = account_of(document)
        return lambda: self._tokens.issue(
            document, time.monotonic(), self.faults.token_lifetime(call), self.faults.token_scopes(call)
        )

    def _register(self, request: web.Request, body: bytes, call: Call) -> CarryOut:
        call.sha256 = hashlib.sha256(body).hexdigest()
        self._bearer(request, call)
        try:
            document = parse_object(body)
        except MalformedBody as problem:
            malformed = validation_error(str(problem), MALFORMED)
            return lambda: self._refused(request, call) or malformed
        verdict = validate(document)
        call.masked = masked(document)
        call.platform, call.resource_id = verdict.platform, verdict.resource_id
        return lambda: self._refused(request, call) or self._upsert(call, verdict)

    def _bearer(self, request: web.Request, call: Call) -> IssuedToken | None:
        token = self._tokens.find(request.headers.get("Authorization"), time.monotonic())
        call.account = token.account if token else None
        return token

    def _refused(self, request: web.Request, call: Call) -> SandboxAnswer | None:
        # Checked when the call is carried out: a token may end while the call waits.
        token = self._bearer(request, call)
        if token is None:
            return NOT_AUTHORIZED
        if WRITE not in token.scopes:
            return INSUFFICIENT_SCOPE
        return None if request.content_type == "application/json" else UNSUPPORTED_MEDIA_TYPE

    def _upsert(self, call: Call, verdict: Registration | Rejection) -> SandboxAnswer:
        if isinstance(verdict, Rejection):
            return validation_error(verdict.message, verdict.errorcode, verdict.errors)
        resource = Resource(call.account, verdict.platform, verdict.resource_id)
        self.registrations.upsert(resource, call.masked or b"", call.seq)
        return SandboxAnswer(201)


async def _unknown(request: web.Request) -> web.StreamResponse:
    if request.path in (TOKEN, REGISTRATION):
        return respond(rest_error(405, "Method Not Allowed"))
    if request.path.startswith(REST):
        return respond(NO_SUCH_SERVICE)
    return respond(rest_error(404, "Not Found"))
