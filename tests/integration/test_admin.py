"""What the admin server says about a real worker, and that nobody can hold it up."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.rig import Requester, Rig, messenger, until
from tests.sandbox_faults import Latency, Status
from worker.broker import topology
from worker.broker.status import publish_order
from worker.contract.status import Order
from worker.events import EventListeners
from worker.pipeline import intake
from worker.service import Service
from worker.serving import HttpServer
from worker.telemetry import admin as admin_module
from worker.telemetry.metrics import Metrics
from worker.telemetry.status import WorkerPhase

ONE_BROKER = "Metrics and probes are no matter of RabbitMQ's version."


@dataclass
class Watched:
    """A worker with an admin server."""

    service: Service
    requester: Requester
    url: str

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()

    async def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        status, text = await self.get(path)
        return status, json.loads(text)

    async def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Each sample by its name and the values of its labels, in the order of the labels' names."""
        _, page = await self.get("/metrics")
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }

    async def until_sample(self, name: str, *labels: str, value: float) -> None:
        async def is_so() -> bool:
            return (await self.samples()).get((name, labels)) == value

        await until(is_so, f"{name} {labels} = {value}")


@contextlib.asynccontextmanager
async def watched(rig: Rig, **overrides: Any) -> AsyncIterator[Watched]:
    metrics, phase = Metrics(), WorkerPhase()
    settings = rig.settings(admin_port=0, **overrides)
    service = await rig.start_worker(settings, EventListeners(metrics, phase))
    requester = await rig.requester_for(settings)
    async with admin_module.serve(service, metrics, phase) as url:
        yield Watched(service, requester, url or "")


@pytest.fixture(autouse=True)
def _asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(admin_module, "PAGE_LIFE", 0.0)


async def test_the_metrics_count_what_became_of_requests(rig):
    async with watched(rig) as worker:
        await worker.requester.ask(messenger())
        await worker.requester.ask(b"{broken")
        await worker.requester.publish(messenger(), reply_to="no.such.queue")
        await worker.until_sample("ott_replies_refused_total", "unroutable", value=1)
        await worker.until_sample("ott_requests_total", "messenger", "registered", value=2)
        samples = await worker.samples()
        assert samples["ott_requests_total", ("none", "rejected")] == 1
        assert samples["ott_dead_letters_total", ("invalid",)] == 1
        assert samples["ott_dead_letters_total", ("exhausted",)] == 0
        assert samples["ott_attempts_total", ()] == 2
        assert samples["ott_upstream_calls_total", ("201",)] == 2
        assert samples["ott_upstream_call_duration_seconds_count", ()] == 2
        assert samples["ott_request_duration_seconds_count", ()] == 3
        assert samples["ott_token_fetches_total", ("ok",)] == 1
        assert samples["ott_token_held", ()] == 1
        assert samples["ott_requests_in_flight", ()] == 0
        assert samples["process_resident_memory_bytes", ()] > 0


async def test_the_metrics_tell_what_is_in_flight_and_for_how_long(rig):
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.5))
    async with watched(rig) as worker:
        sent = [await worker.requester.publish(messenger(page)) for page in ("one", "one", "two")]
        await worker.until_sample("ott_requests_in_flight", value=3)
        await worker.until_sample("ott_lanes", value=2)
        samples = await worker.samples()
        assert 0 < samples["ott_oldest_unsettled_request_age_seconds", ()] < 30
        assert samples["ott_consumer_active", ()] == 1
        for correlation_id in sent:
            await worker.requester.reply(correlation_id)
        await worker.until_sample("ott_oldest_unsettled_request_age_seconds", value=0)


async def test_a_worker_with_partitions_is_active_though_another_one_routes(rig):
    requester = await rig.start(partitions=2)
    await rig.stop_first()
    queue = await requester.channel.get_queue(f"{requester.prefix}.requests", ensure=False)
    await queue.consume(AsyncMock())  # so that this worker is not the router
    async with watched(rig, partitions=2) as worker:
        await worker.until_sample("ott_partition_active", "1", value=1)
        await worker.until_sample("ott_consumer_active", value=1)
        _, report = await worker.probe("/readyz")
        assert report["checks"]["consumer"] == "active"


async def test_a_pause_is_told_by_metrics_and_probe_and_leaves_the_worker_ready(rig):
    async with watched(rig, gate_after=2) as worker:
        rig.sandbox.faults.add(Status(path="registration", status=503, message="Down for repair"))
        sent = [await worker.requester.publish(messenger(f"page-{n}")) for n in range(3)]
        await worker.until_sample("ott_gate_closed", value=1)
        status, report = await worker.probe("/readyz")
        assert status == 200
        assert report["checks"]["gate"] == "closed: Marketing Cloud answered 503: not available"
        rig.sandbox.heal()
        for correlation_id in sent:
            await worker.requester.reply(correlation_id)
        samples = await worker.samples()
        assert samples["ott_gate_closings_total", ()] == 1
        assert samples["ott_gate_closed_seconds_total", ()] > 0
        assert samples["ott_gate_closed", ()] == 0
        assert (await worker.probe("/readyz"))[1]["checks"]["gate"] == "open"


async def test_a_worker_that_stands_by_is_ready_and_says_so(rig):
    async with watched(rig) as first, watched(rig) as second:
        await first.requester.ask(messenger())
        await second.until_sample("ott_token_held", value=1)
        status, report = await second.probe("/readyz")
        assert (status, report["status"], report["reasons"]) == (200, "ready", {})
        assert "standing by" in report["checks"]["consumer"]
        assert report["checks"]["token"] == "valid"
        assert (await first.probe("/readyz"))[1]["checks"]["consumer"] == "active"


async def test_refused_credentials_make_it_not_ready_with_the_reason(rig):
    async with watched(rig, mc_client_secret="wrong-one") as worker:
        await worker.requester.publish(messenger())
        await worker.until_sample("ott_gate_closed", value=1)
        status, report = await worker.probe("/readyz")
        assert status == 503
        assert report["status"] == "not ready"
        assert report["reasons"] == {
            "token": "the token was refused: 401 invalid_client: Invalid client ID or client secret. "
            "Use those in Marketing Cloud Installed Packages."
        }
        assert (await worker.probe("/livez"))[0] == 200
        samples = await worker.samples()
        assert samples["ott_token_fetches_total", ("refused",)] >= 1
        assert samples["ott_token_invalid_client_total", ()] >= 1


async def test_a_worker_without_a_broker_is_alive_and_not_ready(rig):
    settings = rig.settings(amqp_url="amqp://guest:guest@127.0.0.1:1/", admin_port=0)
    metrics, phase = Metrics(), WorkerPhase()
    service = Service(settings, EventListeners(metrics, phase))
    async with service.marketing_cloud, admin_module.serve(service, metrics, phase) as url:
        worker = Watched(service, None, url or "")
        status, report = await worker.probe("/readyz")
        assert status == 503
        assert report["reasons"] == {"consumer": "not subscribed", "publisher": "not connected"}
        assert (await worker.probe("/livez"))[0] == 200
        assert (await worker.samples())["ott_consumer_subscribed", ()] == 0


async def test_connections_that_come_at_once_are_bounded_too():
    server = HttpServer(web.Application(), 5, keepalive_timeout=3600.0)
    port = int((await server.start("127.0.0.1", 0, "test")).rpartition(":")[2])
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]  # accepted in one turn
    streams = [await asyncio.open_connection(sock=client) for client in clients]
    await until(lambda: sum(reader.at_eof() or reader.exception() is not None for reader, _ in streams) == 45)
    for _, writer in streams:
        writer.close()
    await server.close()


async def test_a_request_held_far_beyond_the_hold_limit_makes_it_not_alive(rig, monkeypatch):
    monkeypatch.setattr(intake, "POLL_INTERVAL", 3.0)  # or the request goes back before the probe comes
    rig.sandbox.faults.add(Status(path="registration", status=503))
    async with watched(rig, gate_after=1) as worker:
        sent = await worker.requester.publish(messenger())
        await worker.until_sample("ott_requests_in_flight", value=1)
        subscription = worker.service.intake.subscription
        assert subscription is not None
        assert subscription.oldest is not None
        subscription.oldest.arrived_at -= 86_400
        status, report = await worker.probe("/livez")
        assert (status, list(report["reasons"])) == (503, ["requests"])
        rig.sandbox.heal()
        await worker.requester.reply(sent)


async def test_clients_that_say_nothing_do_not_keep_others_out_and_are_cut_off(rig, monkeypatch):
    monkeypatch.setattr(admin_module, "CONNECTION_LIFE", 3.0)
    async with watched(rig) as worker, contextlib.AsyncExitStack() as clients:
        host, port = worker.url.removeprefix("http://").split(":")
        readers = []
        for n in range(admin_module.CONNECTION_LIMIT * 2):
            reader, writer = await asyncio.open_connection(host, int(port))
            clients.callback(writer.close)
            writer.write(b"GET /livez HTTP/1.1\r\nX-Slow: "[: n % 30])
            readers.append(reader)
        started = time.monotonic()
        assert (await worker.get("/livez"))[0] == 200
        assert time.monotonic() - started < 3.0
        for reader in readers:
            assert await asyncio.wait_for(_ended(reader), 10.0)


async def _ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass
    return True


async def test_a_pause_by_order_is_told_and_leaves_the_worker_ready(rig):
    async with watched(rig) as worker:
        await publish_order(worker.service.settings, Order.now("pause", "rotating secrets", by="ann@host"))
        await until(lambda: worker.service.orders.pause, "the pause")
        status, report = await worker.probe("/readyz")
        assert (status, report["checks"]["consumer"]) == (200, "paused by ann@host: rotating secrets")
        await until(lambda: worker.service.intake.subscription is None, "the subscription's end")
        await worker.requester.publish(messenger(), reply_to="")
        await worker.until_sample("ott_queue_messages", "requests", value=1)  # still told
        await worker.until_sample("ott_paused_by_order", value=1)
