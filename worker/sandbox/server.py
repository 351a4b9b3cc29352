"""The sandbox as an HTTP server."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Self

from aiohttp import web

from worker.errors import UsageError
from worker.sandbox import control
from worker.sandbox.answer import NO_SUCH_SERVICE, rest_error
from worker.sandbox.endpoints import DEFAULT_PAGE_SIZE, REGISTRATION, CarryOut, Endpoints, SandboxRequest
from worker.sandbox.faults import Faults
from worker.sandbox.history import Call, History
from worker.sandbox.registry import Registry
from worker.sandbox.tokens import Tokens
from worker.sandbox.wire import misbehave, respond

TOKEN = "/v2/token"  # noqa: S105
REST = "/ott/"
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
        self._endpoints = Endpoints(self._tokens, self.registrations, self.faults)
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
        application.router.add_post(TOKEN, self._serve("token", self._endpoints.token))
        application.router.add_post(REGISTRATION, self._serve("registration", self._endpoints.register))
        for path, endpoint in (
            (REGISTRATION + "/{platform}", self._endpoints.page),
            (REGISTRATION + "/{platform}/{resource_id}", self._endpoints.one),
        ):
            application.router.add_get(path, self._serve("registration", endpoint), allow_head=False)
        control.add_routes(application, self.history, self.registrations, self.faults, self._tokens)
        application.router.add_route("*", "/{path:.*}", _unknown)
        return application

    def _serve(self, name: str, endpoint: Callable[[SandboxRequest, Call], CarryOut]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            asked = await _read(request)
            call = self.history.begin(request.method, request.path, name)
            carry_out = endpoint(asked, call)
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


async def _read(request: web.Request) -> SandboxRequest:
    return SandboxRequest(
        body=await request.read(),
        content_type=request.content_type,
        authorization=request.headers.get("Authorization"),
        platform=request.match_info.get("platform"),
        resource_id=request.match_info.get("resource_id"),
        page=request.query.get("$page", "1"),
        page_size=request.query.get("$pagesize", str(DEFAULT_PAGE_SIZE)),
    )


async def _unknown(request: web.Request) -> web.StreamResponse:
    if request.path in (TOKEN, REGISTRATION):
        return respond(rest_error(405, "Method Not Allowed"))
    if request.path.startswith(REST):
        return respond(NO_SUCH_SERVICE)
    return respond(rest_error(404, "Not Found"))
