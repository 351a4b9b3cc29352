"""Registering from code without an event loop: Django, Flask, scripts, threads."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from worker.client.registration_client import TIMEOUT, WINDOW, RegistrationClient
from worker.client.types import Options, Outcome, Registration, RequestOptions
from worker.contract.reply import Reply

T = TypeVar("T")


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

    def register_many(
        self,
        registrations: Iterable[Registration],
        *,
        window: int = WINDOW,
        **options: Unpack[Options],
    ) -> Iterator[Outcome]:
        """Register them all and yield what became of each as soon as it is known: see
        RegistrationClient.register_many."""
        outcomes = self._client.register_many(registrations, window=window, **options)
        try:
            while (outcome := self._run(_next(outcomes))) is not None:
                yield outcome
        finally:
            with suppress(RuntimeError):  # closed meanwhile
                self._run(_close(outcomes))

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


async def _next(outcomes: AsyncGenerator[Outcome, None]) -> Outcome | None:
    return await anext(outcomes, None)


async def _close(outcomes: AsyncGenerator[Outcome, None]) -> None:
    await outcomes.aclose()
