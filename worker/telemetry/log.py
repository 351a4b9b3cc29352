"""Logs on standard error: JSON, or for people at a terminal (contract §7). No event holds a secret:
only fields on the allow-list are written."""

import logging
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from worker.contract.settlement import Settlement
from worker.events import EventListener, TokenResult
from worker.settings import Settings
from worker.telemetry.library_logs import silence_libraries

ALLOWED = frozenset(
    {
        "account",
        "attempts",
        "broker",
        "by",
        "count",
        "error",
        "event",
        "examples",
        "failed",
        "http_status",
        "level",
        "logger",
        "platform",
        "prefetch",
        "prefix",
        "queue",
        "reason",
        "reasons",
        "registered",
        "rejected",
        "request_id",
        "resource_id",
        "retried",
        "seconds",
        "status",
        "superseded",
        "timestamp",
        "url",
        "variable",
        "version",
        "why",
    }
)

REPEAT_INTERVAL = 60.0  # seconds before the same failure of the same attempt is logged again

Logger = structlog.typing.FilteringBoundLogger


def configure(settings: Settings) -> Logger:
    """Set logging up for this process."""
    silence_libraries()
    terminal = sys.stderr.isatty()
    as_json = settings.log_format == "json" or (settings.log_format is None and not terminal)
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=terminal)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger()
    return logger


def unexpected(logger: Logger, context: Mapping[str, Any]) -> None:
    """Log an exception that no task awaited, by its type alone: its text could hold a secret."""
    error = context.get("exception")
    logger.error("a defect in the background", error=type(error).__name__ if error else "unknown")


def _only_allowed(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _plain(value) for key, value in event.items() if key in ALLOWED}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()[:500]
    return value


class Log(EventListener):
    """State changes at info and above, one event for each settled request at debug."""

    def __init__(self, logger: Logger, *, debug: bool) -> None:
        self._log = logger
        self._debug = debug
        self._said: dict[str, tuple[str, float]] = {}

    def _goes_on(self, event: str, why: str) -> bool:
        """Whether the same failure was logged less than a minute ago."""
        before, at = self._said.get(event, ("", 0.0))
        now = time.monotonic()
        if before == why and now - at < REPEAT_INTERVAL:
            return True
        self._said[event] = (why, now)
        return False

    def consumer_connected(self) -> None:
        self._said.pop("broker unreachable", None)
        self._log.info("consumer connected")

    def subscribed(self, prefetch: int) -> None:
        self._log.info("subscribed: standing by until a delivery comes", prefetch=prefetch)

    def active(self) -> None:
        self._log.info("active: deliveries come to this worker")

    def subscription_ended(self, why: str) -> None:
        self._log.warning("subscription ended", why=why)

    def acknowledgements_unheard(self) -> None:
        self._log.warning("the broker did not answer: what was acknowledged last may be delivered again")

    def stale_deliveries(self, count: int) -> None:
        if count:
            self._log.info("RabbitMQ redelivers what was in flight on the lost connection", count=count)

    def returned(self, count: int, why: str) -> None:
        self._log.info("deliveries go back to the queue", count=count, why=why)

    def epoch_began(self, epoch: int, partitions: int, seconds: float) -> None:
        self._log.info(
            "router: requests go into partitions",
            epoch=epoch,
            partitions=partitions,
            barrier=round(seconds, 3),
        )

    def epoch_ended(self, why: str) -> None:
        self._log.warning("router: begins anew", why=why)

    def partition_taken(self, partition: int) -> None:
        self._log.info("partition taken", partition=partition)

    def partition_left(self, partition: int, why: str) -> None:
        self._log.info("partition left", partition=partition, why=why)

    def late_request_ignored(self, partition: int) -> None:
        self._log.warning(
            "a request of an earlier router ignored: the present router has it too", partition=partition
        )

    def partition_log_unreadable(self, why: str) -> None:
        if not self._goes_on("partition log unreadable", why):
            self._log.warning("partition log unreadable: no partition can be taken over", why=why)

    def broker_unreachable(self, why: str) -> None:
        if not self._goes_on("broker unreachable", why):
            self._log.warning("broker unreachable", why=why)

    def topology_wrong(self, why: str) -> None:
        if not self._goes_on("topology wrong", why):
            self._log.error("topology wrong", why=why)

    def publisher_connected(self) -> None:
        self._said.pop("publisher not connected", None)
        self._log.info("publisher connected")

    def publisher_lost(self, why: str) -> None:
        if not self._goes_on("publisher not connected", why):
            self._log.warning("publisher not connected", why=why)

    def channel_closed(self, name: str, why: str) -> None:
        self._log.warning("publishing channel closed", queue=name, why=why)

    def publish_turned_down(self, queue: str, why: str) -> None:
        if not self._goes_on(queue, why):
            self._log.error("a queue of ours does not take messages", queue=queue, why=why)

    def as_of_ignored(self, request_id: str, why: str) -> None:
        self._log.warning("x-ott-as-of ignored", request_id=request_id, why=why)

    def reply_refused(self, why: str) -> None:
        self._log.debug("a reply_to was not followed", why=why)

    def token_fetched(self, result: TokenResult, why: str) -> None:
        if result == "ok":
            self._log.info("token fetched")
        elif not self._goes_on("no token", why):
            self._log.warning("no token", why=why)

    def gate_closed(self, why: str) -> None:
        self._log.warning("paused: Marketing Cloud is not available", why=why)

    def gate_opening(self) -> None:
        self._log.info("Marketing Cloud answers again: calls grow step by step")

    def gate_closed_again(self, why: str) -> None:
        self._log.info("still paused: Marketing Cloud failed again", why=why)

    def gate_opened(self, seconds: float) -> None:
        self._log.info("resumed: Marketing Cloud is available", seconds=round(seconds, 3))

    def paused(self, by: str, why: str) -> None:
        self._log.warning("paused by order: no calls until somebody resumes", by=by, why=why)

    def resumed(self) -> None:
        self._log.info("resumed by order")

    def control_unreadable(self, why: str) -> None:
        if not self._goes_on("orders cannot be read", why):
            self._log.warning("orders cannot be read: pause and resume do not reach this worker", why=why)

    def journal_unreadable(self, why: str) -> None:
        if not self._goes_on("the journal cannot be read", why):
            self._log.warning("the journal cannot be read", why=why)

    def processing_failed(self, request_id: str, error: str) -> None:
        self._log.error("a defect stopped a request: it is requeued", request_id=request_id, error=error)

    def draining(self) -> None:
        self._log.info("draining")

    def settled(self, settlement: Settlement, seconds: float) -> None:
        if self._debug:
            self._log.debug(
                "settled",
                request_id=settlement.request_id,
                status=settlement.status,
                reason=settlement.reason,
                platform=settlement.platform,
                resource_id=settlement.resource_id,
                account=settlement.account,
                attempts=settlement.attempts,
                http_status=settlement.http_status,
                seconds=round(seconds, 6),
            )
