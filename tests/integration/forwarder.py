"""A hop before the sandbox that ends TLS and keeps the headers of what passes."""

import contextlib
import ssl
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDictProxy

PASSED_ON = ("Authorization", "Content-Type")


@contextlib.asynccontextmanager
async def forwarder(
    target: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[CIMultiDictProxy[str]]]]:
    """Its URL, and the headers of the registration calls that came."""
    came: list[CIMultiDictProxy[str]] = []
    async with aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            if request.path.endswith("/registration"):
                came.append(request.headers)
            headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
            try:
                async with session.request(
                    request.method, target + request.path, data=await request.read(), headers=headers
                ) as answer:
                    body, kind = await answer.read(), answer.content_type
                    return web.Response(status=answer.status, body=body, content_type=kind)
            except aiohttp.ClientError:
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=502)

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "localhost", 0, ssl_context=tls).start()
            scheme = "https" if tls else "http"
            yield f"{scheme}://localhost:{runner.addresses[0][1]}", came
        finally:
            await runner.cleanup()
