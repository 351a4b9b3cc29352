"""The console's server: everything put together, and its address."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from aiohttp import web

from worker.console.changes import Changes
from worker.console.login import Login
from worker.console.pages import Pages
from worker.console.rendering import Renderer
from worker.console.security import Guard, Handler, check_settings
from worker.console.session import Sessions
from worker.console.sources import Sources
from worker.errors import SettingsError
from worker.settings import Settings

STATIC = Path(__file__).parent / "static"
CONNECTION_LIMIT = 200
SILENCE = 15.0  # seconds without a whole request
SHUTDOWN_TIMEOUT = 2.0  # seconds


class Console:
    """Serves while its context lasts. `url` is where, once it does."""

    def __init__(self, settings: Settings) -> None:
        check_settings(settings)
        self._settings = settings
        self._sources = Sources(settings)
        self.sessions = Sessions(settings)
        self._connections = _Connections()
        self._runner = web.AppRunner(
            self._application(), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        self.url = ""

    def _application(self) -> web.Application:
        sessions, render = self.sessions, Renderer(self._settings)
        guard = Guard(self._settings, sessions, render)

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            with self._connections.used(request.transport):
                return await guard(request, handler)

        pages = Pages(self._sources, render)
        routes = [
            *Login(self._settings, sessions, render).routes(),
            *pages.routes(),
            *Changes(self._sources, pages).routes(),
            web.static("/static", STATIC),
        ]
        application = web.Application(middlewares=[guarded])
        application.add_routes(routes)
        if base := urlsplit(self._settings.console_url or "").path:
            below = web.Application()  # for a proxy that passes its path on
            below.add_routes(routes)
            application.add_subapp(base, below)
        return application

    async def __aenter__(self) -> Self:
        """Raises SettingsError where the address cannot be listened on."""
        host, port = self._settings.console_host, self._settings.console_port
        await self._runner.setup()
        self._connections.bound(self._runner.server)
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"OTT_CONSOLE_HOST and OTT_CONSOLE_PORT must be an address that is free: "
                f"{os.strerror(error.errno or 0)}"
            ) from None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._runner.addresses[0][1]}"
        return self

    @property
    def entry(self) -> str:
        """The URL to open: where no password is asked for, with the token that changes want."""
        url = self._settings.console_url or self.url
        return url if self.sessions.is_required else f"{url}/?token={self.sessions.token}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._sources.close()


class _Connections:
    """Bounds them: one that sends no whole request for a while is closed, and the oldest one if there are too
    many."""

    def __init__(self) -> None:
        self._open: dict[asyncio.BaseTransport, asyncio.TimerHandle | None] = {}

    def bound(self, server: web.Server | None) -> None:
        """Watch the connections of this server."""
        assert server is not None  # the runner is set up
        made, lost = server.connection_made, server.connection_lost

        def connection_made(handler: Any, transport: asyncio.Transport) -> None:
            made(handler, transport)
            if len(self._open) >= CONNECTION_LIMIT:
                self._close(next(iter(self._open)))
            self._rest(transport)
            ends[handler] = transport

        def connection_lost(handler: Any, exc: BaseException | None = None) -> None:
            lost(handler, exc)
            transport = ends.pop(handler, None)
            if transport is not None and (timer := self._open.pop(transport, None)):
                timer.cancel()

        ends: dict[Any, asyncio.Transport] = {}
        server.connection_made = connection_made  # type: ignore[method-assign]
        server.connection_lost = connection_lost  # type: ignore[method-assign]

    @contextlib.contextmanager
    def used(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """A request has come whole, and is answered within this context."""
        timer = None if transport is None else self._open.get(transport)
        if timer is not None:
            timer.cancel()
        try:
            yield
        finally:
            if transport in self._open:
                self._rest(transport)

    def _rest(self, transport: asyncio.BaseTransport) -> None:
        self._open[transport] = asyncio.get_running_loop().call_later(SILENCE, self._close, transport)

    def _close(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)
        transport.abort()  # type: ignore[attr-defined]  # each transport of a server has it
