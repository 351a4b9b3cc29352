"""Keeping a connection to RabbitMQ: opened again whenever it is lost, for as long as somebody needs it."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from aio_pika.abc import AbstractConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from worker.backoff import RECONNECT, Backoff
from worker.errors import BrokerUnreachable, WorkerError

STABLE_AFTER = 5.0  # seconds; the loss of a connection that lasted longer counts as the first one

C = TypeVar("C", bound=AbstractConnection)


async def keep_connected(
    source: Callable[[], AbstractAsyncContextManager[C]],
    use: Callable[[C], Awaitable[None]],
    on_failure: Callable[[WorkerError], None],
    *,
    backoff: Backoff = RECONNECT,
    until: asyncio.Event | None = None,
) -> None:
    """Use what `source` gives, again and again. `use` ends when the connection is of no use any more: where
    it returns, the next one is opened at once. `on_failure` is told each error, and may raise it to end this.
    A defect is told as BrokerUnreachable: the task must not end unheard."""
    clock, end = asyncio.get_running_loop().time, until or asyncio.Event()

    async def once() -> None:
        """Raises WorkerError, unless the connection has lasted: then the next failure is the first one."""
        opened_at = math.inf
        try:
            async with source() as connection:
                opened_at = clock()
                await use(connection)
        except WorkerError as error:
            if end.is_set() or clock() - opened_at <= STABLE_AFTER:
                raise
            on_failure(error)
        except Exception as error:
            raise BrokerUnreachable(f"internal error: {type(error).__name__}") from error

    def tell(state: RetryCallState) -> None:
        if state.outcome is not None and isinstance(error := state.outcome.exception(), WorkerError):
            on_failure(error)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(WorkerError),
        wait=wait_random_exponential(backoff.first, backoff.longest),
        sleep=lambda seconds: pause(seconds, end),
        before_sleep=tell,
        stop=lambda _: end.is_set(),
        retry_error_callback=lambda _: None,
    )
    while True:
        await retrying(once)
        if end.is_set():
            return
        await pause(backoff.draw(1), end)


async def pause(seconds: float, until: asyncio.Event) -> None:
    """Wait for so many seconds, or until the event is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
