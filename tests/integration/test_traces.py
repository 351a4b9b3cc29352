"""A trace goes from a request's headers to its call and its reply."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tests.faults.proxy import overheard
from tests.rig import Requester, Rig, messenger, until
from worker.events import EventListeners
from worker.service import Service
from worker.telemetry.traces import Traces, exporting

ONE_BROKER = "Traces are no matter of RabbitMQ's version."

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=kept"}


@dataclass
class Traced:
    requester: Requester
    exporter: InMemorySpanExporter
    said: bytearray  # in calls

    async def spans(self, count: int) -> list[ReadableSpan]:
        """The finished spans, the last to end at the end."""
        await until(lambda: len(self.exporter.get_finished_spans()) >= count, f"{count} spans")
        return list(self.exporter.get_finished_spans())


@pytest.fixture
async def traced(rig: Rig) -> AsyncIterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with overheard(rig.sandbox.url) as (url, said):
        settings = rig.settings(mc_auth_url=url, mc_rest_url=url)
        traces = Traces(provider, f"{settings.prefix}.requests")
        service = Service(settings, EventListeners(traces), traces)
        running = asyncio.create_task(service.run())
        async with Requester(settings.amqp_url.get_secret_value(), settings.prefix) as requester:
            await until(lambda: service.intake.subscription, "the subscription")
            yield Traced(requester, exporter, said)
        service.stop()
        await running
        traces.close()


def ids(span: ReadableSpan) -> tuple[str, str]:
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"


async def test_the_call_and_the_reply_carry_the_trace_that_the_request_came_with(traced):
    sent = await traced.requester.publish(messenger(), headers=CONTEXT, message_id="request-1")
    reply = await traced.requester.reply_message(sent)
    call, journey = await traced.spans(2)
    assert ids(journey)[0] == ids(call)[0] == TRACE
    assert f"{journey.parent.span_id:016x}" == PARENT
    assert call.parent.span_id == journey.context.span_id
    assert f"\r\ntraceparent: 00-{TRACE}-{ids(call)[1]}-01\r\n".encode() in traced.said
    assert b"\r\ntracestate: vendor=kept\r\n" in traced.said
    assert reply.headers["traceparent"] == f"00-{TRACE}-{ids(journey)[1]}-01"
    assert journey.attributes["ott.status"] == "registered"
    assert journey.attributes["messaging.message.id"] == "request-1"
    assert call.attributes["http.response.status_code"] == 201


async def test_a_replay_is_a_trace_of_its_own_linked_to_the_original(traced):
    replayed = {**CONTEXT, "x-ott-received-at": "2026-11-23T12:00:00.123456Z"}
    await traced.requester.ask(messenger(), key="replay", headers=replayed)
    await until(lambda: any(s.kind is SpanKind.CONSUMER for s in traced.exporter.get_finished_spans()))
    journey = (await traced.spans(1))[-1]
    assert journey.parent is None
    assert ids(journey)[0] != TRACE
    assert [f"{link.context.trace_id:032x}" for link in journey.links] == [TRACE]


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nonsense", "tracestate": "x" * 5000},
        {"traceparent": 7, "tracestate": {"a": 1}},
        {"traceparent": CONTEXT["traceparent"], "tracestate": "a=b\r\nX-Injected: yes"},
    ],
    ids=["nonsense", "wrong types", "line ends"],
)
async def test_a_hostile_context_harms_nothing(traced, headers):
    reply = await traced.requester.ask(messenger(), headers=headers)
    assert reply["status"] == "registered"
    assert b"X-Injected" not in traced.said


def test_without_the_setting_opentelemetry_is_not_imported():
    code = "import sys, worker.cli.run; print(sorted(m for m in sys.modules if 'opentelemetry' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_collector_that_does_not_answer_delays_the_end_by_3_seconds_at_most(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        provider = exporting()
        provider.get_tracer("test").start_span("waiting").end()
        began = time.monotonic()
        Traces(provider, "queue").close()
        assert time.monotonic() - began < 6  # seconds; 10 and more by itself
