"""`ott-worker run`."""

import asyncio
import signal
from typing import TYPE_CHECKING

import uvloop

from worker.broker.topology import Topology
from worker.errors import SettingsError
from worker.events import EventListeners
from worker.service import Service, run_until
from worker.settings import Settings, load_settings
from worker.telemetry.admin import Admin
from worker.telemetry.log import Log, configure, unexpected
from worker.telemetry.metrics import Metrics
from worker.telemetry.state import Phase
from worker.telemetry.status import StatusFeed

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces


def run() -> None:
    """Take registration requests from RabbitMQ until SIGTERM or SIGINT.

    Example: OTT_MC_SUBDOMAIN=mc123 OTT_MC_CLIENT_ID=… OTT_MC_CLIENT_SECRET_FILE=secret ott-worker run
    """
    settings = load_settings()
    settings.require_marketing_cloud()
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    logger = configure(settings)
    metrics, phase = Metrics(), Phase()
    status = StatusFeed(phase)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unexpected(logger, context))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    traces = _traces(settings)
    listeners = [metrics, phase, status, Log(logger, debug=settings.log_level == "debug")]
    events = EventListeners(*listeners, *([traces] if traces else []))
    service = Service(settings, events, traces)
    try:
        async with Admin(settings, service, metrics, phase) as admin:
            if admin.url:
                logger.info("admin server listening", url=admin.url)
            async with status.publish(settings, service):
                await run_until(service, stop)
    finally:
        if traces:
            await traces.close()
    logger.info("stopped")


def _traces(settings: Settings) -> "Traces | None":
    if not settings.traces:
        return None
    try:
        from worker.telemetry.traces import Traces, exporting  # noqa: PLC0415 - an extra, and costly to import
    except ImportError:
        raise SettingsError(
            "OTT_TRACES must be false without the extra otel: pip install 'ott-registration-worker[otel]'"
        ) from None
    return Traces(exporting(), Topology(settings.prefix).requests)
