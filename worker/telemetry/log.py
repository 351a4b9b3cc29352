"""Logs on standard error: JSON, or text on a terminal (contract §7).

`worker.events` defines the lines. No event holds a secret, so no line does."""

import asyncio
import logging
import os
import queue
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, TextIO, cast

import structlog

from worker.contract.settlement import Settlement, brief, error_text
from worker.contract.words import STATUSES
from worker.events import EVENTS, Event, EventListener
from worker.settings import Settings

LINES_KEPT = 1000
END_TIMEOUT = 1.0  # seconds for the remaining lines at the end
REPEAT_INTERVAL = 60.0  # seconds before the same failure is logged again
FAILURES_KEPT = 1000
LONGEST_TEXT = 500  # characters
SUMMARY_INTERVAL = 60.0  # seconds
SETTLED_FIELDS = (
    *("request_id", "status", "reason", "platform", "resource_id", "account"),
    *("attempts", "http_status"),
)

Logger = structlog.typing.FilteringBoundLogger


class LineWriter:
    """The file of a logger. A separate thread writes to a descriptor, so that a full pipe or disk blocks
    nothing. Lines that cannot be written, or exceed LINES_KEPT, are dropped."""

    def __init__(self, descriptor: int, dropped: Callable[[], object]) -> None:
        """`dropped` is called for each line that is dropped."""
        self._descriptor = descriptor
        self._dropped = dropped
        self._lines: queue.Queue[bytes | threading.Event] = queue.Queue(LINES_KEPT)
        self._is_torn = False  # a line was written partially
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Add a line. Never blocks."""
        try:
            self._lines.put_nowait(text.encode(errors="backslashreplace"))
        except queue.Full:
            self._dropped()
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are not buffered."""

    def close(self) -> None:
        """Wait a moment for the remaining lines."""
        written = threading.Event()
        try:
            self._lines.put(written, timeout=END_TIMEOUT)
        except queue.Full:
            return
        written.wait(END_TIMEOUT)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write_all(b"\n" + line if self._is_torn else line)
            except OSError:
                self._dropped()

    def _write_all(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process made the terminal or pipe non-blocking
                select.select([], [self._descriptor], [])
            finally:
                if len(rest) < len(line):
                    self._is_torn = bool(rest)


def configure(settings: Settings, file: TextIO | LineWriter | None = None) -> Logger:
    """Configure logging to standard error or a `file`."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    as_json = settings.log_format == "json" or (settings.log_format is None and not terminal)
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=terminal)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _printable,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, file or sys.stderr)),
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger()
    return logger


def unexpected(logger: Logger, context: Mapping[str, Any]) -> None:
    """Log the type of an exception that no task awaited. Its text could hold a secret."""
    error = context.get("exception")
    logger.error("internal error in the background", error=type(error).__name__ if error else "unknown")


def _printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()[:LONGEST_TEXT]
    return round(value, 3) if isinstance(value, float) else value


class Log(EventListener):
    """Logs each event; with `debug` also each settled request."""

    def __init__(self, logger: Logger, *, debug: bool) -> None:
        self._log = logger
        self._logged: dict[tuple[object, ...], float] = {}  # events that repeat: when they were last logged
        self.listen(
            **{name: partial(self._log_event, name, event) for name, event in EVENTS.items() if event.level}
        )
        if debug:
            self.listen(settled=self._log_settled)

    def _log_event(self, name: str, event: Event, *values: object) -> None:
        if event.repeats and self._goes_on((name, *values)):
            return
        if event.ends:
            self._logged = {key: at for key, at in self._logged.items() if key[0] != event.ends}
        getattr(self._log, str(event.level))(event.text, **dict(zip(event.fields, values, strict=True)))

    def _goes_on(self, failure: tuple[object, ...]) -> bool:
        """Whether the same failure was logged less than REPEAT_INTERVAL ago."""
        now = time.monotonic()
        if now - self._logged.get(failure, float("-inf")) < REPEAT_INTERVAL:
            return True
        if len(self._logged) >= FAILURES_KEPT:
            self._logged.clear()
        self._logged[failure] = now
        return False

    def _log_settled(self, settlement: Settlement, seconds: float) -> None:
        fields = {name: getattr(settlement, name) for name in SETTLED_FIELDS}
        self._log.debug("settled", **fields, seconds=seconds)


class Summary(EventListener):
    """Logs one line per minute in which requests are settled: counts by status and reason, and one example
    error for each reason."""

    def __init__(self, logger: Logger, interval: float = SUMMARY_INTERVAL) -> None:
        self._log = logger
        self._interval = interval
        self._begin()

    def _begin(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._counts = dict.fromkeys((*STATUSES, "retried"), 0)
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def settled(self, settlement: Settlement, seconds: float) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            self._timer = loop.call_later(self._interval, self.log)
        self._counts[settlement.status] += 1
        self._counts["retried"] += settlement.attempts > 1
        if (reason := settlement.reason) is not None:
            self._reasons[reason] += 1
            if reason not in self._examples:
                self._examples[reason] = brief(error_text(settlement))

    def log(self) -> None:
        """Log the counts that have not been logged yet."""
        if self._timer is None:
            return
        self._timer.cancel()
        seconds = round(asyncio.get_running_loop().time() - self._since, 1)
        reasons, examples = dict(self._reasons), self._examples
        self._log.info(
            "requests settled", seconds=seconds, **self._counts, reasons=reasons, examples=examples
        )
        self._begin()
