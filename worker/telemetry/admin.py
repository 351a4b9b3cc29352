"""The admin server: `/livez`, `/readyz` and `/metrics` (contract §7). Its answers hold no secret.

Live means that this process works, because a restart repairs neither RabbitMQ nor Marketing Cloud. Ready
means that the worker consumes requests, or is ready to take over.

It shares the event loop with the requests, so its load is bounded: an idle connection is closed after 5
seconds, the 65th connection closes the oldest, and the metrics are computed at most once a second."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import generate_latest

from worker.amqp.confirm_channel import CONFIRM_TIMEOUT
from worker.amqp.consumer import LEASE
from worker.broker.situation import of_worker
from worker.service import Service
from worker.serving import HttpServer
from worker.telemetry.metrics import Gauges, Metrics
from worker.telemetry.status import WorkerPhase, describe, gets_deliveries

CONNECTION_LIMIT = 64
CONNECTION_LIFE = 5.0  # seconds
PAGE_LIFE = 1.0  # seconds
HEADER_LIMIT = 4096  # bytes of a line of the request, and of a field
MARGIN = 60.0  # seconds by which a deadline may be exceeded
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Check = tuple[bool, str]  # whether it passes, and its text


@contextlib.asynccontextmanager
async def serve(service: Service, metrics: Metrics, phase: WorkerPhase) -> AsyncIterator[str | None]:
    """Serve within the context, at the URL that it yields (None without a port). Raises SettingsError if the
    address cannot be used."""
    settings, page, page_ends = service.settings, b"", 0.0
    metrics.registry.register(Gauges(service, phase))

    async def livez(_: web.Request) -> web.Response:
        return _probe("live", live(service), [])

    async def readyz(_: web.Request) -> web.Response:
        return _probe("ready", ready(service, phase), situation(service, phase))

    async def show_metrics(_: web.Request) -> web.Response:
        nonlocal page, page_ends
        if time.monotonic() >= page_ends:
            page, page_ends = generate_latest(metrics.registry), time.monotonic() + PAGE_LIFE
        return web.Response(body=page, headers={"Content-Type": PROMETHEUS})

    if settings.admin_port is None:
        yield None
        return
    application = web.Application()
    application.on_response_prepare.append(_add_headers)
    handlers = {"/livez": livez, "/readyz": readyz, "/metrics": show_metrics}
    application.add_routes([web.get(path, handler) for path, handler in handlers.items()])
    server = HttpServer(
        application,
        CONNECTION_LIMIT,
        keepalive_timeout=CONNECTION_LIFE,
        shutdown_timeout=1.0,
        max_line_size=HEADER_LIMIT,
        max_field_size=HEADER_LIMIT,
    )
    url = await server.start(settings.admin_host, settings.admin_port, "OTT_ADMIN_HOST and OTT_ADMIN_PORT")
    try:
        yield url
    finally:
        await server.close()


def live(service: Service) -> dict[str, Check]:
    """Whether the process works: no delivery is held far beyond its deadline, and publishing goes on. (The
    answer itself shows that the event loop runs.)"""
    settings = service.settings
    held = service.oldest_age
    failed = service.publisher.has_failed
    return {
        "requests": (
            held < settings.hold_limit + settings.shutdown_grace + MARGIN,
            f"oldest held for {held:.0f} s",
        ),
        "publisher": (not failed, "a defect ended it" if failed else "running"),
    }


def ready(service: Service, phase: WorkerPhase) -> dict[str, Check]:
    """Whether it consumes requests or is ready to take over. A pause or an outage leaves it ready, because
    another worker would wait too. So do failures of other accounts, which concern only their own requests."""
    accounts, flow = service.marketing_cloud.accounts, service.flow
    others = accounts.others_in_trouble
    first = "; ".join(f"{account}: {why}" for account, why in list(others.items())[:3])
    full = "; ".join(f"{queue} accepts no messages: {why}" for queue, why, _ in service.publisher.blocked)
    has_token, trouble = accounts.default.has_token, accounts.default.trouble
    return {
        "consumer": _consumer(service, phase),
        "publisher": _publisher(service),
        "token": (
            has_token or not trouble,
            "valid" if has_token else trouble or "not needed yet, or since it expired",
        ),
        "accounts": (True, f"{len(others)} in trouble: {first}" if others else "none in trouble"),
        "gate": (True, f"{flow.state.value}: {flow.why}" if flow.is_pausing else "open"),
        "queues": (not full, full or "none is full"),
    }


def situation(service: Service, phase: WorkerPhase) -> list[str]:
    """A line for each condition that stops or slows this worker."""
    now = datetime.now(UTC)
    return [f"{each.line(now)}. {each.advice}" for each in of_worker(describe(service, phase))]


def _consumer(service: Service, phase: WorkerPhase) -> Check:
    subscription, pause = service.intake.subscription, service.orders.pause
    if phase.is_draining:
        return False, "draining"
    if pause is not None and service.connection is not None:
        return True, f"paused by {pause.by}: {pause.why}"
    if subscription is None:
        return False, "not subscribed"
    if subscription.silence > LEASE:
        return False, f"the broker has not answered for {subscription.silence:.0f} s"
    return True, "active" if gets_deliveries(service, phase) else "subscribed, idle or standing by"


def _publisher(service: Service) -> Check:
    publisher = service.publisher
    if not publisher.ready:
        return False, "not connected"
    silence = asyncio.get_running_loop().time() - publisher.confirmed_at
    if publisher.waiting and silence > CONFIRM_TIMEOUT:
        return False, f"{publisher.waiting} messages wait, none confirmed for {silence:.0f} s"
    return True, "connected"


def _probe(name: str, checks: dict[str, Check], situation: list[str]) -> web.Response:
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
