"""The admin server: `/livez`, `/readyz` and `/metrics` (contract §7). It says nothing secret.

It shares the event loop with the requests, so its cost is bounded: a connection may rest for 5 seconds; the
65th connection closes the oldest; the metrics are computed once a second at most.
"""

import asyncio
import json
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

from worker.service import Service
from worker.serving import HttpServer
from worker.settings import Settings
from worker.telemetry import health
from worker.telemetry.metrics import Metrics
from worker.telemetry.state import LoopMonitor, StateCollector, WorkerPhase

CONNECTION_LIMIT = 64
CONNECTION_LIFE = 5.0  # seconds
PAGE_LIFE = 1.0  # seconds
HEADER_LIMIT = 4096  # bytes of a line of the request, and of a field
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Admin:
    """Serves while its context lasts, at `url`; serves nothing if the port is empty."""

    def __init__(self, settings: Settings, service: Service, metrics: Metrics, phase: WorkerPhase) -> None:
        self._settings = settings
        self._service = service
        self._phase = phase
        self._loop_monitor = LoopMonitor()
        self._registry = registry(metrics, StateCollector(service, phase, self._loop_monitor))
        self._page, self._page_ends = b"", 0.0
        self._server: HttpServer | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.url: str | None = None

    async def __aenter__(self) -> Self:
        """Raises SettingsError where the address cannot be listened on."""
        host, port = self._settings.admin_host, self._settings.admin_port
        if port is None:
            return self
        application = web.Application()
        application.on_response_prepare.append(_add_headers)
        application.add_routes(
            [
                web.get("/livez", self._live),
                web.get("/readyz", self._ready),
                web.get("/metrics", self._metrics),
            ]
        )
        self._server = HttpServer(
            application,
            CONNECTION_LIMIT,
            keepalive_timeout=CONNECTION_LIFE,
            shutdown_timeout=1.0,
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
        )
        self.url = await self._server.start(host, port, "OTT_ADMIN_HOST and OTT_ADMIN_PORT")
        self._ticking = asyncio.create_task(self._loop_monitor.run(), name="loop monitor")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        if self._server is not None:
            await self._server.close()

    async def _live(self, _: web.Request) -> web.Response:
        return _probe("live", health.live(self._service, self._phase), [])

    async def _ready(self, _: web.Request) -> web.Response:
        situation = health.situation(self._service, self._phase)
        return _probe("ready", health.ready(self._service, self._phase), situation)

    async def _metrics(self, _: web.Request) -> web.Response:
        if time.monotonic() >= self._page_ends:
            self._page, self._page_ends = generate_latest(self._registry), time.monotonic() + PAGE_LIFE
        return web.Response(body=self._page, headers={"Content-Type": PROMETHEUS})


def registry(metrics: Metrics, state: StateCollector) -> CollectorRegistry:
    """Everything that `/metrics` shows: counters, gauges, and the process itself."""
    all_of_it = CollectorRegistry(auto_describe=False)
    all_of_it.register(metrics)
    all_of_it.register(state)
    ProcessCollector(registry=all_of_it)
    PlatformCollector(registry=all_of_it)
    GCCollector(registry=all_of_it)
    return all_of_it


def _probe(name: str, checks: dict[str, health.Check], situation: list[str]) -> web.Response:
    wrong = {check: text for check, (holds, text) in checks.items() if not holds}
    document = {
        "status": f"not {name}" if wrong else name,
        "reasons": wrong,
        "situation": situation,
        "checks": {check: text for check, (_, text) in checks.items()},
    }
    return web.json_response(
        text=json.dumps(document, ensure_ascii=False) + "\n", status=503 if wrong else 200
    )


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "ott-worker"
    response.headers["Cache-Control"] = "no-store"
    response.force_close()
