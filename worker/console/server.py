"""The console's server: everything put together, and its address."""

import asyncio
import os
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from aiohttp import web

from worker.console.changes import Changes
from worker.console.pages import Pages
from worker.console.rendering import Renderer, see
from worker.console.security import Guard, Login, check_settings
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
        # A connection that sends no whole request is idle: it is closed after the time that one may rest.
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
            keepalive_timeout=SILENCE,
        )
        self._listener: asyncio.Server | None = None
        self.url = ""

    def _application(self) -> web.Application:
        sessions, render = self.sessions, Renderer(self._settings)
        pages = Pages(self._sources, render)
        routes = [
            *Login(self._settings, sessions, render).routes(),
            *pages.routes(),
            *Changes(self._sources, pages).routes(),
            web.static("/static", STATIC),
        ]
        application = web.Application(middlewares=[web.middleware(Guard(self._settings, sessions, render))])
        application.add_routes(routes)
        if base := urlsplit(self._settings.console_url or "").path:
            below = web.Application()  # for a proxy that passes its path on
            below.add_routes(routes)
            application.router.add_get(base, _first_page)
            application.add_subapp(base, below)
        return application

    async def __aenter__(self) -> Self:
        """Raises SettingsError where the address cannot be listened on."""
        host, port = self._settings.console_host, self._settings.console_port
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(self._protocol, host, port)
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"OTT_CONSOLE_HOST and OTT_CONSOLE_PORT must be an address that is free: "
                f"{os.strerror(error.errno or 0)}"
            ) from None
        port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return self

    def _protocol(self) -> asyncio.Protocol:
        """For one more connection. The oldest one is closed if there are too many."""
        server = self._runner.server
        assert server is not None, "the runner is set up"
        connected = [each.transport for each in server.connections if each.transport is not None]
        for oldest in connected[: max(0, len(connected) + 1 - CONNECTION_LIMIT)]:
            oldest.abort()
        return server()

    @property
    def entry(self) -> str:
        """The URL to open: where no password is asked for, with the token that changes want."""
        url = self._settings.console_url or self.url
        return url if self.sessions.is_required else f"{url}/?token={self.sessions.token}"

    async def __aexit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()
        await self._sources.close()


async def _first_page(_: web.Request) -> web.Response:
    return see("/")
