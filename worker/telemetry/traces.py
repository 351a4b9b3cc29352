"""Traces by OpenTelemetry, an extra (`pip install 'ott-registration-worker[otel]'`, `OTT_TRACES=true`).

A request's headers carry its W3C trace context (`traceparent`, `tracestate`); its calls to Marketing Cloud
and its reply continue the trace. A replay is a new trace, linked to the original one. OpenTelemetry's own
variables configure the export. Without OTT_TRACES this module is not imported."""

import os
import threading

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.contract.settlement import Settlement
from worker.events import Call, Called, EventListener, Process
from worker.pipeline.request import Request

SERVICE_NAME = "ott-registration-worker"
CLOSE_TIMEOUT = 2.5  # seconds
HEADERS = ("traceparent", "tracestate")

_propagator = TraceContextTextMapPropagator()


def exporting() -> TracerProvider:
    """A provider that exports spans with OTLP, configured by OpenTelemetry's variables."""
    if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", SERVICE_NAME)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces(EventListener):
    """Creates a span for each request and each call. `settled` adds the outcome to the request's span."""

    def __init__(self, provider: TracerProvider, queue: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE_NAME)
        self._queue = queue

    async def process(self, process: Process, request: Request) -> None:
        """Process a request within a span."""
        carried = {name: request.header(name) for name in HEADERS}
        origin = _propagator.extract({k: v for k, v in carried.items() if isinstance(v, str)})
        links: tuple[Link, ...] = ()
        if request.is_replay:
            repeated = trace.get_current_span(origin).get_span_context()
            links = (Link(repeated, {"ott.link": "replay of"}),) if repeated.is_valid else ()
            origin = trace.set_span_in_context(trace.INVALID_SPAN, origin)
        with self._tracer.start_as_current_span(
            f"process {self._queue}",
            context=origin,
            kind=SpanKind.CONSUMER,
            links=links,
            attributes={
                "messaging.system": "rabbitmq",
                "messaging.operation.type": "process",
                "messaging.destination.name": self._queue,
                "messaging.message.id": _text(request.id),
            },
            record_exception=False,  # its text could hold a secret
        ):
            await process(request)

    async def call(self, call: Call, url: str) -> Called:
        """Make a call within a span, with the trace context in its headers."""
        with self._tracer.start_as_current_span(
            "POST",
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": "POST", "url.full": url},
            record_exception=False,
        ) as span:
            answer = await call(self.headers())
            span.set_attribute("http.response.status_code", answer[0])
            if answer[0] >= 400:
                span.set_status(StatusCode.ERROR)
            return answer

    def headers(self) -> dict[str, str]:
        """The current trace context, as headers for messages and calls."""
        carried: dict[str, str] = {}
        _propagator.inject(carried)
        return carried

    def settled(self, settlement: Settlement, seconds: float) -> None:
        span = trace.get_current_span()
        span.set_attribute("ott.attempts", settlement.attempts)
        for name in ("status", "reason", "platform", "resource_id", "account"):
            if (value := getattr(settlement, name)) is not None:
                span.set_attribute(f"ott.{name}", _text(value))
        if settlement.reason is not None:
            span.set_status(StatusCode.ERROR, settlement.reason)

    def close(self) -> None:
        """Export the remaining spans, for at most CLOSE_TIMEOUT, even if the collector does not answer. Call
        it last."""
        exporting = threading.Thread(target=self._provider.shutdown, daemon=True)
        exporting.start()
        exporting.join(CLOSE_TIMEOUT)


def _text(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
