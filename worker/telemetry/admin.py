"""The admin server: `/livez`, `/readyz` and `/metrics` (contract §7). It says nothing secret.

It shares the event loop with the requests, so its cost is bounded: a connection lasts 5 seconds at most; the
65th connection closes the oldest; the metrics are computed once a second at most.
"""

import asyncio
import json
import os
import time
from typing import Self

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from worker.errors import SettingsError
from worker.service import Service
from worker.settings import Settings
from worker.telemetry.health import Health, Report
from worker.telemetry.metrics import Metrics
from worker.telemetry.state import LoopMonitor, StateCollector, WorkerPhase

CONNECTION_LIMIT = 64
CONNECTION_LIFE = 5.0  # seconds
PAGE_LIFE = 1.0  # seconds
HEADER_LIMIT = 4096  # bytes of a line of the request, and of a field
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Admin:
    """Serves while its context lasts; serves nothing if the port is empty."""

    def __init__(self, settings: Settings, service: Service, metrics: Metrics, phase: WorkerPhase) -> None:
        self._settings = settings
        self._loop_monitor = LoopMonitor()
        self._health = Health(service, phase, self._loop_monitor)
        self._page = _Page(registry(metrics, StateCollector(service, phase, self._loop_monitor)))
        self._runner: web.ServerRunner | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.url: str | None = None

    async def __aenter__(self) -> Self:
        """Raises SettingsError where the address cannot be listened on."""
        port = self._settings.admin_port
        if port is None:
            return self
        server = _BoundedServer(
            self._answer,
            access_log=None,
            keepalive_timeout=CONNECTION_LIFE,
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
        )
        runner = self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        host = self._settings.admin_host
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"OTT_ADMIN_HOST and OTT_ADMIN_PORT must be an address that is free: "
                f"{os.strerror(error.errno or 0)}"
            ) from None
        self._ticking = asyncio.create_task(self._loop_monitor.run(), name="loop monitor")
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            response = web.Response(status=405, headers={"Allow": "GET, HEAD"})
        elif request.path == "/livez":
            response = _probe("live", self._health.live())
        elif request.path == "/readyz":
            response = _probe("ready", self._health.ready())
        elif request.path == "/metrics":
            response = web.Response(body=self._page.body(), headers={"Content-Type": PROMETHEUS})
        else:
            response = web.Response(status=404)
        response.headers["Server"] = "ott-worker"
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response


class _BoundedServer(web.Server):
    """Closes connections that last too long, and the oldest one if there are too many."""

    def __init__(self, handler: object, **options: object) -> None:
        super().__init__(handler, **options)  # type: ignore[arg-type]  # options of any type, passed through
        self._open: dict[web.RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._open) >= CONNECTION_LIMIT:
            oldest, _ = next(iter(self._open.values()))
            oldest.abort()
        timer = asyncio.get_running_loop().call_later(CONNECTION_LIFE, transport.abort)
        self._open[handler] = (transport, timer)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        _, timer = self._open.pop(handler, (None, None))
        if timer is not None:
            timer.cancel()


class _Page:
    """The metrics page, cached for `PAGE_LIFE`."""

    def __init__(self, source: CollectorRegistry) -> None:
        self._source = source
        self._made_at = float("-inf")
        self._body = b""

    def body(self) -> bytes:
        if time.monotonic() - self._made_at >= PAGE_LIFE:
            self._body = generate_latest(self._source)
            self._made_at = time.monotonic()
        return self._body


def registry(metrics: Metrics, state: StateCollector) -> CollectorRegistry:
    """Everything that `/metrics` shows: counters, gauges, and the process itself."""
    all_of_it = CollectorRegistry(auto_describe=False)
    all_of_it.register(metrics)
    all_of_it.register(state)
    ProcessCollector(registry=all_of_it)
    PlatformCollector(registry=all_of_it)
    GCCollector(registry=all_of_it)
    return all_of_it


def _probe(name: str, report: Report) -> web.Response:
    document = {
        "status": name if report.ok else f"not {name}",
        "reasons": {check: report.checks[check] for check in report.wrong},
        "situation": report.situation,
        "checks": report.checks,
    }
    text = json.dumps(document, ensure_ascii=False) + "\n"
    return web.Response(
        status=200 if report.ok else 503, text=text, content_type="application/json", charset="utf-8"
    )
