"""An HTTP server of this process, with a bounded number of connections."""

import asyncio
import os
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from worker.errors import SettingsError

BACKLOG = 1024  # connections that wait to be accepted


class HttpServer:
    """Serves an application. A connection without a complete request is idle and is closed after
    `keepalive_timeout`. If there are more than `limit` connections, the oldest one is closed."""

    def __init__(self, application: web.Application, limit: int, **options: Any) -> None:
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, **options)
        self._limit = limit
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int, named: str) -> str:
        """Listen on this address, and return the URL. Raises SettingsError if the address cannot be used;
        `named` are the settings that configure it."""
        await self._runner.setup()
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._protocol, host, port, backlog=BACKLOG
            )
        except OSError as error:
            await self._runner.cleanup()
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise SettingsError(f"{named} must be an address that is free: {why}") from None
        port = self._listener.sockets[0].getsockname()[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def close(self) -> None:
        """End all connections; requests in flight may be answered first."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None, "the runner is set up"
        # Runs just before this connection is made. By then, those accepted in the same turn are made.
        asyncio.get_running_loop().call_soon(self._make_room, server)
        return server()

    def _make_room(self, server: web.Server) -> None:
        connected = [each.transport for each in server.connections if each.transport is not None]
        for oldest in connected[: max(0, len(connected) + 1 - self._limit)]:
            oldest.abort()


def host_name(host: str) -> str:
    """The name or address in a Host header; empty if it has none."""
    with suppress(ValueError):
        parts = urlsplit(f"//{host}")
        if parts.port != 0:  # raises ValueError if the port is not a number
            return parts.hostname or ""
    return ""


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """The name as an IP address, or None if it is not one."""
    try:
        return ip_address(name)
    except ValueError:
        return None
