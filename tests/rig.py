"""A worker, the sandbox and a real RabbitMQ, put together for a test."""

import asyncio
import contextlib
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Self
from uuid import uuid4

import aio_pika
import aio_pika.exceptions

from tests.sandbox_faults import Status
from worker.amqp.connection import connect
from worker.broker import topology
from worker.contract.settlement import Resource
from worker.contract.status import GateStatus, WorkerStatus
from worker.events import EVENTS, EventListener, EventListeners
from worker.sandbox import Sandbox
from worker.sandbox.faults import Fault
from worker.service import Service
from worker.settings import Settings, load_settings
from worker.telemetry.status import WorkerPhase

DEFAULT_URL = load_settings().amqp_url.get_secret_value()  # the worker's own default
WAIT_TIMEOUT = 30.0  # seconds that a condition may take

# The API's two examples, which the demonstration shows too.
_SHOWN = json.loads(files("worker.cli").joinpath("demo.json").read_text())
MESSENGER, LINE = (shown["body"] for shown in _SHOWN[:2])


def messenger(page_id: str = "1732555047025799", name: str = "SFMC Engineers", **more: Any) -> bytes:
    """The API's Messenger example with another page, name or attributes, as a body."""
    attributes = {**MESSENGER["ottPlatformAttributes"], "pageId": page_id, "pageName": name, **more}
    return json.dumps({**MESSENGER, "ottPlatformAttributes": attributes}).encode()


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]],
    what: str = "the condition",
    within: float = WAIT_TIMEOUT,
) -> Any:
    """Wait until `condition()` is true and return it; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come about within {within} s"
        await asyncio.sleep(0.02)


class Requester:
    """An upstream system: publishes requests and reads its replies, with plain aio-pika."""

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self.prefix = prefix
        self.replies: dict[str, list[aio_pika.abc.AbstractIncomingMessage]] = {}
        self.order: list[str] = []

    async def __aenter__(self) -> Self:
        self._connection = await aio_pika.connect(self._url)
        self.channel = await self._connection.channel()
        await self.channel.set_qos(0)
        self.queue = await self.channel.declare_queue(exclusive=True, durable=False)
        await self.queue.consume(self._take, no_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def _take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.replies.setdefault(message.correlation_id or "", []).append(message)
        self.order.append(message.correlation_id or "")

    async def publish(self, body: bytes, *, key: str | None = None, **properties: Any) -> str:
        """Publish a request and return its correlation id; its replies come to this requester. It goes to
        the queue by its name, or with a routing key to the entry exchange."""
        properties.setdefault("correlation_id", uuid4().hex)
        properties.setdefault("reply_to", self.queue.name)
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)
        if key is None:
            await self.channel.default_exchange.publish(message, f"{self.prefix}.requests")
        else:
            entry = await self.channel.get_exchange(self.prefix, ensure=False)
            await entry.publish(message, key)
        return str(properties["correlation_id"])

    async def reply(self, correlation_id: str) -> dict[str, Any]:
        """The first reply with this correlation id, decoded."""
        message = await self.reply_message(correlation_id)
        document = json.loads(message.body)
        assert isinstance(document, dict)
        return document

    async def reply_message(self, correlation_id: str) -> aio_pika.abc.AbstractIncomingMessage:
        await until(lambda: self.replies.get(correlation_id), f"the reply to {correlation_id}")
        return self.replies[correlation_id][0]

    async def all_registered(self, correlation_ids: Iterable[str]) -> None:
        """Wait for the replies to these requests, which are all registered."""
        statuses = Counter([(await self.reply(each))["status"] for each in correlation_ids])
        assert set(statuses) == {"registered"}, statuses

    async def ask(self, body: bytes, **properties: Any) -> dict[str, Any]:
        """Publish and return the reply."""
        return await self.reply(await self.publish(body, **properties))

    async def take(self, name: str) -> aio_pika.abc.AbstractIncomingMessage:
        """The next message of the queue PREFIX.name, acknowledged."""
        queue = await self.channel.get_queue(f"{self.prefix}.{name}", ensure=False)
        message = await until(lambda: queue.get(fail=False, no_ack=True), f"a message in {name}")
        assert isinstance(message, aio_pika.abc.AbstractIncomingMessage)
        return message

    async def take_all(self, name: str, count: int = 0) -> list[aio_pika.abc.AbstractIncomingMessage]:
        """The messages that are ready in the queue PREFIX.name, at least `count`, acknowledged, in order."""
        count = max(count, await self.depth(name))
        taken: list[aio_pika.abc.AbstractIncomingMessage] = []

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            taken.append(message)

        queue = await self.channel.get_queue(f"{self.prefix}.{name}", ensure=False)
        tag = await queue.consume(take, no_ack=True)
        await until(lambda: len(taken) >= count, f"{count} messages of {name}")
        await queue.cancel(tag)
        return taken

    async def depth(self, name: str) -> int:
        """Messages that are ready in the queue PREFIX.name."""
        channel = await self._connection.channel()
        try:
            queue = await channel.declare_queue(f"{self.prefix}.{name}", passive=True)
            return queue.declaration_result.message_count or 0
        finally:
            await channel.close()

    async def holds(self, name: str, counts: Container[int]) -> bool:
        """Whether so many messages are ready in the queue PREFIX.name."""
        return await self.depth(name) in counts


async def journal_records(requester: Requester, count: int) -> list[dict[str, Any]]:
    """The first records of the journal."""
    records: list[dict[str, Any]] = []

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        assert (message.content_type, message.type) == ("application/x-ndjson", "ott.registration.journal")
        records.extend(json.loads(line) for line in message.body.splitlines())
        await message.ack()

    await requester.channel.set_qos(10)
    queue = await requester.channel.get_queue(f"{requester.prefix}.journal", ensure=False)
    tag = await queue.consume(take, arguments={"x-stream-offset": "first"})
    await until(lambda: len(records) >= count, "the journal's records")
    await queue.cancel(tag)
    return records


class Events(EventListener):
    """Remembers every event of a worker."""

    def __init__(self) -> None:
        self._told: list[tuple[str, tuple[Any, ...]]] = []
        self.listen(**{name: functools.partial(self._remember, name) for name in EVENTS})

    def _remember(self, name: str, *arguments: Any) -> None:
        self._told.append((name, arguments))

    def of(self, name: str) -> list[Any]:
        """What these events told: their argument, or their arguments where they have several."""
        return [given[0] if len(given) == 1 else given for told, given in self._told if told == name]

    @property
    def names(self) -> list[str]:
        """What happened, in its order."""
        return [told for told, _ in self._told]

    @property
    def closed(self) -> list[str]:
        """Why the gate closed."""
        return self.of("gate_closed")

    @property
    def opened(self) -> int:
        """How often the gate opened."""
        return len(self.of("gate_opened"))


def worker_status(worker: str = "host:7:20261125T080000Z", **more: Any) -> WorkerStatus:
    """What a worker that does nothing at the moment says of itself."""
    given: dict[str, Any] = {"version": "1.1.0", "at": datetime.now(UTC), "state": "active"}
    given |= {"gate": GateStatus(state="open"), "in_flight": 0, "rate_per_second": 0, "reconnects": 0}
    return WorkerStatus(worker=worker, **{**given, **more})


def failing(status: int, **more: Any) -> Fault:
    """A fault of the registration endpoint."""
    return Status(path="registration", status=status, **more)


class Rig:
    """Starts a worker in this process, with a sandbox of its own."""

    def __init__(self, make_settings: Callable[..., Settings]) -> None:
        self.events = Events()  # what all its workers tell, but for those that are given a listener
        self._make_settings = make_settings
        self._running: list[tuple[Service, asyncio.Task[None]]] = []

    async def __aenter__(self) -> Self:
        self.sandbox = Sandbox(client_id="sandbox", client_secret="sandbox", port=0)
        await self.sandbox.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for service, task in self._running:
            service.stop()
            await task
        if hasattr(self, "requester"):
            await self.requester.__aexit__()
        await self.sandbox.__aexit__(None, None, None)

    @property
    def services(self) -> list[Service]:
        """The workers that run, the first one first."""
        return [service for service, _ in self._running]

    def held(self, page_id: str, account: str | None = None) -> str:
        """The page's name as Marketing Cloud holds it now."""
        registered = self.sandbox.registrations[Resource(account, "messenger", page_id)]
        return str(registered.body["ottPlatformAttributes"]["pageName"])

    @property
    def names_called(self) -> list[str]:
        """The pages' names in the calls so far, in their order."""
        bodies = [call.body or {} for call in self.sandbox.history.registration_calls]
        return [body["ottPlatformAttributes"]["pageName"] for body in bodies]

    async def turn_down(self, page_id: str, name: str, **properties: Any) -> None:
        """Have a request turned down, so that it lies in the dead queue."""
        self.sandbox.faults.add(failing(403, resource_id=page_id, errorcode=20002, message="No privileges"))
        reply = await self.requester.ask(messenger(page_id, name), **properties)
        self.sandbox.heal()
        assert (reply["status"], reply["errorcode"]) == ("failed", 20002)

    def settings(self, **overrides: Any) -> Settings:
        urls = {"mc_auth_url": self.sandbox.url, "mc_rest_url": self.sandbox.url}
        return self._make_settings(**{**urls, **overrides})

    async def start(self, **overrides: Any) -> Requester:
        """Start a worker; return a requester for its queue."""
        settings = self.settings(**overrides)
        await self.start_worker(settings)
        return await self.requester_for(settings)

    async def requester_for(self, settings: Settings) -> Requester:
        """The requester, on the queue of these settings."""
        if not hasattr(self, "requester"):
            self.requester = Requester(settings.amqp_url.get_secret_value(), settings.prefix)
            await self.requester.__aenter__()
        return self.requester

    async def start_worker(
        self, settings: Settings, events: EventListener | None = None, *, tells_status: bool = False
    ) -> Service:
        phase = WorkerPhase()
        service = Service(settings, EventListeners(events or self.events, phase))
        publishing = phase.publish(service) if tells_status else contextlib.nullcontext()
        task = asyncio.create_task(_run(service, publishing))
        self._running.append((service, task))
        await until(lambda: task.done() or service.intake.subscription, "the subscription")
        if task.done():
            task.result()
        return service

    async def lose_worker(self, service: Service) -> None:
        """End one worker as a crash does, with its connections and without a word."""
        for running in [r for r in self._running if r[0] is service]:
            running[1].cancel()
            await asyncio.gather(running[1], return_exceptions=True)
            self._running.remove(running)

    async def stop_first(self) -> None:
        """Drain the worker that was started first, and wait for its end."""
        await self.stop_worker(self.services[0])

    async def stop_worker(self, service: Service) -> None:
        """Drain one worker and wait for its end."""
        service.stop()
        for running in [r for r in self._running if r[0] is service]:
            await running[1]
            self._running.remove(running)


async def _run(service: Service, beside: contextlib.AbstractAsyncContextManager[None]) -> None:
    async with beside:
        await service.run()


async def declare(settings: Settings) -> None:
    """Declare what a worker with these settings declares."""
    connection = await connect(settings, "test")
    try:
        await topology.ensure(connection, settings)
    finally:
        await connection.close()


async def delete_objects(url: str, prefix: str) -> None:
    """Delete every queue and exchange of a prefix."""
    partitions = [f"requests.{number}" for number in range(1, 9)]
    names = ("requests", *partitions, "partitions", "replies", "dead", "journal", "status", "control")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in names:
            await channel.queue_delete(f"{prefix}.{name}")
        for exchange in (prefix, f"{prefix}.dead"):
            await channel.exchange_delete(exchange)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process of its own with these settings."""
    given = {
        f"OTT_{name.upper()}": _as_text(getattr(settings, name))
        for name in settings.model_fields_set
        if getattr(settings, name) is not None
    }
    if settings.admin_port is None:
        given["OTT_ADMIN_PORT"] = ""
    return {**os.environ, **given}


def _as_text(value: object) -> str:
    if hasattr(value, "get_secret_value"):
        return str(value.get_secret_value())
    return str(value).lower() if isinstance(value, bool) else str(value)
