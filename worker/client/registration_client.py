"""Registering from Python, with an event loop and without: a request goes out, its reply is awaited (contract
§2, §4)."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Coroutine, Hashable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar, Unpack
from uuid import uuid4

from aio_pika.abc import AbstractConnection

from worker.broker.requester import Requester
from worker.client.types import Registration, RequestOptions
from worker.contract.registration import validate
from worker.contract.reply import MalformedReply, Reply
from worker.errors import OutcomeUnknown
from worker.events import EventListener
from worker.settings import load_settings

T = TypeVar("T")

TIMEOUT = 60.0  # seconds
QUEUE_EXPIRES = 600.0  # seconds
ID_LENGTH = 255  # bytes of an AMQP short string

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class _NoBodies(logging.Filter):
    """Keeps out what the AMQP library logs of messages that surprise it: all of them, secrets included."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "message %r" not in str(record.msg)


logging.getLogger("aiormq.channel").addFilter(_NoBodies())


class RegistrationClient:
    """Sends registrations to the worker over RabbitMQ and receives the replies on a queue of its own.

    What is not given is taken from the `OTT_` variables, TLS files included. A `connection` of aio-pika that
    is there already can be used instead of a URL; it stays open at the end. `prefix` is the worker's
    `OTT_PREFIX`, `account_id` the business unit (MID) whose token is used, `timeout` in seconds.

    Use as an async context manager; entering it raises BrokerUnreachable, TopologyError (no worker has
    declared its queues there) or SettingsError. Many requests may be under way at once; those of one
    resource reach the worker in the order of the calls. A lost connection is opened again, and nothing that
    was sent is lost by it.

    A client can be entered once, and used inside its context by the event loop that it was entered in.
    Anything else is a RuntimeError at once; threads use SyncRegistrationClient.
    """

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
            raise ValueError("give a url or a connection, not both")
        given = {"amqp_url": url, "prefix": prefix}
        self._settings = load_settings(**{name: value for name, value in given.items() if value is not None})
        self._connection = connection
        self._account_id = account_id
        self._timeout = timeout
        self._answers: dict[str, asyncio.Future[Reply]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("A RegistrationClient can be entered once: make another one")
        self._loop = asyncio.get_running_loop()
        self._requester = Requester(
            self._settings,
            uuid4().hex,
            self._on_reply,
            expires=QUEUE_EXPIRES,
            events=EventListener(),
            connection=self._connection,
        )
        await self._requester.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_open = False
        for request_id, answer in self._answers.items():
            if not answer.done():
                answer.set_exception(OutcomeUnknown(request_id, "The client was closed"))
        await self._requester.__aexit__()

    async def register(self, registration: Registration, **options: Unpack[RequestOptions]) -> Reply:
        """Send one registration, the JSON object of the API, and wait for its reply, whatever its status.

        Cancelled, it gives the request up if it is not sent yet. Raises OutcomeUnknown when `timeout` seconds
        bring no reply, TopologyError or PublishRefused when the broker does not take the request, TypeError
        or ValueError when the registration is not JSON, and ValueError for an id that is longer than 255
        bytes or under way already.
        """
        self._check_open()
        request_id = _id(options)
        if request_id in self._answers:
            raise ValueError(f"request {request_id} is under way already")
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        confirmed = self._send(registration, request_id, options)
        confirmed.add_done_callback(partial(_pass_on_error, answer))
        self._answers[request_id] = answer
        try:
            async with self._in_time(options):
                return await answer
        except OutcomeUnknown:
            raise
        except TimeoutError:
            missing = "No reply came in time" if confirmed.done() else "The broker did not confirm in time"
            raise OutcomeUnknown(request_id, missing) from None
        finally:
            confirmed.cancel()
            del self._answers[request_id]

    async def publish(self, registration: Registration, **options: Unpack[RequestOptions]) -> str:
        """Send one registration and return its request id once the broker has it safe. The reply goes to the
        queue `PREFIX.replies`. Raises as `register` does; OutcomeUnknown here means that the broker has
        not confirmed."""
        self._check_open()
        request_id = _id(options)
        confirmed = self._send(registration, request_id, options, replies=False)
        try:
            async with self._in_time(options):
                await confirmed
        except TimeoutError:
            raise OutcomeUnknown(request_id, "The broker did not confirm in time") from None
        return request_id

    def _in_time(self, options: RequestOptions) -> asyncio.Timeout:
        timeout = options.get("timeout")
        return asyncio.timeout(self._timeout if timeout is None else timeout)

    def _check_open(self) -> None:
        if self._loop is None:
            raise RuntimeError("The client is not open yet: use it inside its `async with` block")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "The client belongs to another event loop: make one in each, or use SyncRegistrationClient"
            )
        if not self._is_open:
            raise RuntimeError("The client is closed: its `async with` block has ended")

    def _send(
        self, registration: Registration, request_id: str, options: RequestOptions, *, replies: bool = True
    ) -> "asyncio.Future[None]":
        document: dict[str, Any] = dict(registration)
        account, as_of = options.get("account_id") or self._account_id, options.get("as_of")
        return self._requester.send(
            _encode(document).encode(),
            request_id=request_id,
            replies=replies,
            account_id=account,
            as_of=None if as_of is None else _as_of(as_of),
            lane=_lane(document, account),
        )

    def _on_reply(self, request_id: str, body: bytes) -> None:
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():  # else given up meanwhile, or a repeat
            with suppress(MalformedReply):
                answer.set_result(Reply.parse(body))


class SyncRegistrationClient:
    """RegistrationClient for threads: its methods block until the reply is there.

    One client serves all threads of a process, many at once, by a thread and an event loop of its own. Use it
    as a context manager, or `open` and `close` it. A server that forks its workers (gunicorn, uWSGI, Celery)
    opens it after the fork, in each of them.

    Arguments and errors are those of RegistrationClient. Used before it is open, after it is closed or in
    another process it raises RuntimeError at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        prefix: str | None = None,
        account_id: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = RegistrationClient(url, prefix=prefix, account_id=account_id, timeout=timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Connect. Raises BrokerUnreachable, TopologyError or SettingsError."""
        if self._process is not None:
            raise RuntimeError("A SyncRegistrationClient can be opened once: make another one")
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ott-client", daemon=True)
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        """Close the connection. Calls of other threads that wait for a reply raise OutcomeUnknown. A client
        that is not open stays as it is."""
        if self._loop is None or self._process != os.getpid():
            return
        try:
            self._run(self._client.__aexit__(None, None, None))
        finally:
            self._end_loop()

    def register(self, registration: Registration, **options: Unpack[RequestOptions]) -> Reply:
        """Send one registration and wait for its reply: see RegistrationClient.register."""
        return self._run(self._client.register(registration, **options))

    def publish(self, registration: Registration, **options: Unpack[RequestOptions]) -> str:
        """Send one registration and return its request id once the broker has it: see
        RegistrationClient.publish."""
        return self._run(self._client.publish(registration, **options))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._open_loop()
        except RuntimeError:
            call.close()
            raise
        future = asyncio.run_coroutine_threadsafe(call, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._process is None:
            raise RuntimeError("The client is not open yet: use it inside its `with` block, or open it")
        if self._process != os.getpid():
            raise RuntimeError("The client was opened before a fork: open one in each process")
        if self._loop is None:
            raise RuntimeError("The client is closed: make another one")
        return self._loop

    def _end_loop(self) -> None:
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            with suppress(RuntimeError):
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def _id(options: RequestOptions) -> str:
    if unknown := options.keys() - RequestOptions.__optional_keys__:
        # A misspelt account would register with the default one.
        raise TypeError(f"there is no option {min(unknown)}")
    given = options.get("request_id")
    if given and len(given.encode()) > ID_LENGTH:
        # It would be cut on its way, and the reply would come under another id.
        raise ValueError(f"request_id must be {ID_LENGTH} bytes at most")
    return given or str(uuid4())


def _as_of(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("as_of must have a time zone, as datetime.now(UTC) has")
    return moment.isoformat()


def _lane(document: dict[str, Any], account: str | None) -> Hashable:
    parsed = validate(document)
    if parsed.resource_id is None:
        return None
    return account, parsed.platform, parsed.resource_id


def _pass_on_error(answer: "asyncio.Future[Reply]", confirmed: "asyncio.Future[None]") -> None:
    if confirmed.cancelled() or answer.done():
        return
    error = confirmed.exception()
    if error is not None:
        answer.set_exception(error)
