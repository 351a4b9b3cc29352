"""`ott-worker run`."""

import asyncio
import contextlib
import os
import resource
from typing import TYPE_CHECKING

import uvloop
from yarl import URL

from worker.amqp.connection import node_name
from worker.broker.topology import Topology
from worker.cli.terminal import on_end
from worker.errors import SettingsError
from worker.events import EventListeners
from worker.release import version
from worker.service import Service
from worker.settings import Settings, load_settings, split_urls, unknown_variables
from worker.telemetry import admin
from worker.telemetry.log import LineWriter, Log, Logger, Summary, configure, unexpected
from worker.telemetry.metrics import Metrics
from worker.telemetry.status import WorkerPhase

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces

LAST_GRACE = 5.0  # seconds after OTT_SHUTDOWN_GRACE


def run() -> None:
    """Process registration requests from RabbitMQ until SIGTERM or SIGINT.

    Example: OTT_MC_SUBDOMAIN=mc123 OTT_MC_CLIENT_ID=… OTT_MC_CLIENT_SECRET_FILE=secret ott-worker run"""
    settings = load_settings()
    settings.require_marketing_cloud()
    _raise_descriptor_limit()
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    metrics, phase = Metrics(), WorkerPhase()
    lines = LineWriter(2, metrics.lines_dropped.inc)
    logger = configure(settings, lines)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unexpected(logger, context))
    traces = _traces(settings)
    summary = Summary(logger)
    listeners = [metrics, phase, summary, Log(logger, debug=settings.log_level == "debug")]
    events = EventListeners(*listeners, *([traces] if traces else []))
    _introduce(logger, settings)
    settings.warn_by(events.setting_ignored)
    service = Service(settings, events, traces)

    def end() -> None:
        service.stop()
        # Not a task: at the end, asyncio cancels all tasks and waits for any that continue.
        loop.call_later(settings.shutdown_grace + LAST_GRACE, _end_now, logger, lines)

    on_end(end)
    try:
        async with admin.serve(service, metrics, phase) as url:
            if url:
                logger.info("admin server listening", url=url)
            async with phase.publish(service):
                await service.run()
    finally:
        summary.log()
        if traces:
            traces.close()
        loop.call_later(LAST_GRACE, _end_now, logger, lines)
    logger.info("stopped")
    lines.close()


def _end_now(logger: Logger, lines: LineWriter) -> None:
    """End the process at once. RabbitMQ redelivers what is not acknowledged."""
    try:
        logger.error("did not drain in time: ending now")
        lines.close()
    finally:
        os._exit(1)


def _raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors as far as allowed: each call needs one."""
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _introduce(logger: Logger, settings: Settings) -> None:
    """Log one line with the version and the main settings, and warn of unknown variables."""
    urls = split_urls(settings.amqp_url.get_secret_value())
    logger.info(
        "ott-worker starts",
        version=version(),
        prefix=settings.prefix,
        broker=", ".join(node_name(URL(url)) for url in urls),
        account=settings.mc_account_id,
        url=settings.rest_url or settings.auth_url,
    )
    for name, why in unknown_variables().items():
        logger.warning("a variable is not read", variable=name, why=why)


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
