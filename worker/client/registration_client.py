"""Registering from Python, with and without an event loop (contract §2, §4)."""

import asyncio
import concurrent.futures
import json
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Self, TypeVar, Unpack
from uuid import uuid4

from aio_pika.abc import AbstractConnection

from worker.amqp.connection import cancel_all
from worker.broker.requester import Requester
from worker.client.types import Registration, RequestOptions
from worker.contract.registration import validate
from worker.contract.reply import MalformedReply, Reply, parse_reply
from worker.errors import OutcomeUnknown, WorkerError
from worker.events import EventListener
from worker.settings import load_settings

T = TypeVar("T")

WINDOW = 100  # requests of register_many at once
TIMEOUT = 60.0  # seconds
QUEUE_EXPIRES = 600.0  # seconds
ID_LENGTH = 255  # bytes of an AMQP short string

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class _NoBodies(logging.Filter):
    """Drops the AMQP library's log lines that contain whole messages, secrets included."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "message %r" not in str(record.msg)


logging.getLogger("aiormq.channel").addFilter(_NoBodies())


class RegistrationClient:
    """Sends registrations to the worker over RabbitMQ, and receives the replies on its own queue.

    Missing arguments come from the `OTT_` variables, including TLS files. An existing aio-pika `connection`
    can be used instead of a URL; it stays open at the end. `prefix` is the worker's `OTT_PREFIX`,
    `account_id` the business unit (MID) whose token is used, and `timeout` is in seconds.

    Use it as an async context manager; entering raises BrokerUnreachable, TopologyError (the worker's queues
    are missing) or SettingsError. Many requests may be in flight at once; those of one resource reach the
    worker in the order of the calls. It reconnects after a loss, and no request is lost.

    Outside its context, or in another event loop, it raises RuntimeError. For threads, use
    SyncRegistrationClient."""

    def __init__(
        self,
        url: str | None = None,
        *,
        connection: AbstractConnection | None = None,
        prefix: str | None = None,
        account_id: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        if url is not None and connection is not None:
            raise ValueError("pass a url or a connection, not both")
        overrides = {"amqp_url": url, "prefix": prefix}
        self._settings = load_settings(**{k: v for k, v in overrides.items() if v is not None})
        self._connection = connection
        self._account_id = account_id
        self._timeout = timeout
        self._answers: dict[str, asyncio.Future[Reply | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("The client is already open: create another one")
        self._requester = Requester(
            self._settings,
            uuid4().hex,
            self._on_reply,
            expires=QUEUE_EXPIRES,
            events=EventListener(),
            connection=self._connection,
        )
        await self._requester.__aenter__()
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._loop = None
        for request_id, answer in self._answers.items():
            if not answer.done():
                answer.set_exception(OutcomeUnknown(request_id, "The client was closed"))
        await self._requester.__aexit__()

    async def register(self, registration: Registration, **options: Unpack[RequestOptions]) -> Reply:
        """Send one registration, the JSON object of the API, and return its reply, whatever the status.

        A cancellation abandons the request if it is not sent yet. Raises OutcomeUnknown if there is no reply
        within `timeout` seconds, TopologyError or PublishRefused if the broker does not accept the request,
        TypeError or ValueError if the registration is not JSON, and ValueError for an id that is longer than
        255 bytes or already in flight."""
        _, reply = await self._send(registration, replies=True, **options)
        assert reply is not None
        return reply

    async def register_many(
        self,
        registrations: Iterable[Registration],
        *,
        window: int = WINDOW,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[tuple[Registration, Reply | Exception], None]:
        """Register many, at most `window` at once. Yields each registration with its reply, or the exception
        of `register`, as soon as it is known. Leaving the iteration abandons those in flight."""

        async def outcome(registration: Registration) -> tuple[Registration, Reply | Exception]:
            try:
                return registration, await self.register(registration, **options)
            except (WorkerError, TypeError, ValueError) as error:
                return registration, error

        waiting, in_flight = iter(registrations), set[asyncio.Task[tuple[Registration, Reply | Exception]]]()
        try:
            while True:
                following = islice(waiting, window - len(in_flight))
                in_flight |= {asyncio.create_task(outcome(each), name="register") for each in following}
                if not in_flight:
                    return
                done, in_flight = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            await cancel_all(*in_flight)

    async def publish(self, registration: Registration, **options: Unpack[RequestOptions]) -> str:
        """Send one registration, and return its request id when the broker has confirmed it. The reply goes
        to the queue `PREFIX.replies`. Raises as `register` does; OutcomeUnknown means that the broker has not
        confirmed."""
        request_id, _ = await self._send(registration, replies=False, **options)
        return request_id

    async def _send(
        self,
        registration: Registration,
        *,
        replies: bool,
        request_id: str | None = None,
        account_id: str | None = None,
        as_of: datetime | None = None,
        timeout: float | None = None,
    ) -> tuple[str, Reply | None]:
        """The request's id, and with `replies` its reply."""
        if self._loop is None:
            raise RuntimeError("The client is not open: use it inside its `async with` block")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "The client belongs to another event loop: create one in each, or use SyncRegistrationClient"
            )
        request_id = request_id or str(uuid4())
        if len(request_id.encode()) > ID_LENGTH:
            # AMQP would cut it, and the reply would have another id.
            raise ValueError(f"request_id must be {ID_LENGTH} bytes at most")
        if request_id in self._answers:
            raise ValueError(f"request {request_id} is already in flight")
        if as_of is not None and as_of.tzinfo is None:
            raise ValueError("as_of must have a time zone, as datetime.now(UTC) has")
        document, account = dict(registration), account_id or self._account_id
        answer: asyncio.Future[Reply | None] = self._loop.create_future()
        confirmed = self._requester.send(
            _encode(document).encode(),
            request_id=request_id,
            replies=replies,
            account_id=account,
            as_of=None if as_of is None else as_of.isoformat(),
            lane=_lane(document, account),
        )
        confirmed.add_done_callback(partial(_on_confirmed, answer, replies))
        self._answers[request_id] = answer
        try:
            async with asyncio.timeout(self._timeout if timeout is None else timeout):
                return request_id, await answer
        except OutcomeUnknown:
            raise
        except TimeoutError:
            missing = "No reply arrived in time" if confirmed.done() else "The broker did not confirm in time"
            raise OutcomeUnknown(request_id, missing) from None
        finally:
            confirmed.cancel()
            del self._answers[request_id]

    def _on_reply(self, request_id: str, body: bytes) -> None:
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():  # else it was abandoned, or this is a repeat
            with suppress(MalformedReply):
                answer.set_result(parse_reply(body))


def _on_confirmed(
    answer: "asyncio.Future[Reply | None]", replies: bool, confirmed: "asyncio.Future[None]"
) -> None:
    if confirmed.cancelled() or answer.done():
        return
    if error := confirmed.exception():
        answer.set_exception(error)
    elif not replies:
        answer.set_result(None)


def _lane(document: dict[str, Any], account: str | None) -> Hashable:
    parsed = validate(document)
    return None if parsed.resource_id is None else (account, parsed.platform, parsed.resource_id)


class SyncRegistrationClient:
    """RegistrationClient for threads: its methods block.

    One client serves all threads of a process, with its own thread and event loop. Use it as a context
    manager, or `open` and `close` it. A server that forks its workers (gunicorn, uWSGI, Celery) opens one in
    each of them, after the fork.

    Arguments and errors are those of RegistrationClient. Before it is open, after it is closed and in another
    process, it raises RuntimeError."""

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        account_id: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = RegistrationClient(url, prefix=prefix, account_id=account_id, timeout=timeout)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect. Raises BrokerUnreachable, TopologyError or SettingsError."""
        opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(opened)), name="ott-client", daemon=True
        )
        thread.start()
        try:
            opened.result()
        except Exception:
            thread.join()
            raise
        self._thread = thread

    def close(self) -> None:
        """Close the connection. Calls in other threads that wait for a reply raise OutcomeUnknown. Does
        nothing if the client is not open."""
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def register(self, registration: Registration, **options: Unpack[RequestOptions]) -> Reply:
        """Send one registration, and return its reply: see RegistrationClient.register."""
        return self._run(self._client.register, registration, **options)

    def register_many(
        self,
        registrations: Iterable[Registration],
        *,
        window: int = WINDOW,
        **options: Unpack[RequestOptions],
    ) -> Iterator[tuple[Registration, Reply | Exception]]:
        """Register many, and yield each when its outcome is known: see RegistrationClient.register_many."""
        outcomes = self._client.register_many(registrations, window=window, **options)
        try:
            while (found := self._run(_next, outcomes)) is not None:
                yield found
        finally:
            with suppress(RuntimeError):  # the client is closed
                self._run(_close, outcomes)

    def publish(self, registration: Registration, **options: Unpack[RequestOptions]) -> str:
        """Send one registration and return its request id: see RegistrationClient.publish."""
        return self._run(self._client.publish, registration, **options)

    async def _serve(self, opened: "concurrent.futures.Future[None]") -> None:
        try:
            async with self._client:
                self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
                opened.set_result(None)
                await self._closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def _run(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        # After a fork, the thread exists only in the parent.
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("The client is not open: use it inside its `with` block; open it after a fork")
        future = asyncio.run_coroutine_threadsafe(method(*args, **options), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(outcomes: AsyncGenerator[T, None]) -> T | None:
    return await anext(outcomes, None)


async def _close(outcomes: AsyncGenerator[Any, None]) -> None:
    await outcomes.aclose()
