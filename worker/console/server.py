"""The console's server: everything put together, and its address."""

import os
from pathlib import Path
from typing import Self

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
SHUTDOWN_TIMEOUT = 2.0  # seconds


class Console:
    """Serves while its context lasts. `url` is where, once it does."""

    def __init__(self, settings: Settings) -> None:
        check_settings(settings)
        self._settings = settings
        self._sources = Sources(settings)
        self._runner = web.AppRunner(
            self._application(), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT
        )
        self.url = ""

    def _application(self) -> web.Application:
        sessions, render = Sessions(self._settings), Renderer(self._settings)
        guard = Guard(self._settings, sessions, render)

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await guard(request, handler)

        application = web.Application(middlewares=[guarded])
        application.add_routes(Login(sessions, render).routes())
        pages = Pages(self._sources, render)
        application.add_routes(pages.routes())
        application.add_routes(Changes(self._sources, pages).routes())
        application.router.add_static("/static", STATIC)
        return application

    async def __aenter__(self) -> Self:
        """Raises SettingsError where the address cannot be listened on."""
        host, port = self._settings.console_host, self._settings.console_port
        await self._runner.setup()
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

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._sources.close()
