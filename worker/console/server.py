"""The console's server and its address."""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from aiohttp import web

from worker.console.pages import Pages
from worker.console.rendering import Renderer
from worker.console.security import Guard
from worker.console.sources import Sources
from worker.serving import HttpServer
from worker.settings import Settings

STATIC = Path(__file__).parent / "static"
CONNECTION_LIMIT = 200
SILENCE = 15.0  # seconds without a complete request
SHUTDOWN_TIMEOUT = 2.0  # seconds


class Console:
    """Serves the console within its context, at `url`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sources = Sources(settings)
        self._render = Renderer(settings)
        self.guard = Guard(settings, self._render)
        self._server = HttpServer(
            self._application(),
            CONNECTION_LIMIT,
            keepalive_timeout=SILENCE,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
        self.url = ""

    def _application(self) -> web.Application:
        pages = Pages(self._sources, self._render)
        routes = [*self.guard.routes(), *pages.routes(), web.static("/static", STATIC)]
        application = web.Application(middlewares=[web.middleware(self.guard)])
        application.add_routes(routes)
        if base := urlsplit(self._settings.console_url or "").path:
            below = web.Application()  # for a proxy that keeps its path
            below.add_routes(routes)
            application.router.add_get(base, _first_page)
            application.add_subapp(base, below)
        return application

    async def __aenter__(self) -> Self:
        """Raises SettingsError if the address cannot be used."""
        host, port = self._settings.console_host, self._settings.console_port
        self.url = await self._server.start(host, port, "OTT_CONSOLE_HOST and OTT_CONSOLE_PORT")
        return self

    @property
    def entry(self) -> str:
        """The URL to open; without a password, it has the token that changes require."""
        url = self._settings.console_url or self.url
        return url if self.guard.wants_password else f"{url}/?token={self.guard.token}"

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()
        await self._sources.close()


async def _first_page(_: web.Request) -> web.Response:
    raise web.HTTPSeeOther("/")
