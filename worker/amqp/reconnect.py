"""Keeping a connection to RabbitMQ: opened again whenever it is lost, for as long as somebody needs it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from aio_pika.abc import AbstractConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from worker.amqp.connection import Connection, connected
from worker.backoff import RECONNECT, Backoff
from worker.errors import BrokerUnreachable, WorkerError
from worker.settings import Settings

STABLE_AFTER = 5.0  # seconds; the loss of a connection that lasted longer counts as the first one

C = TypeVar("C", bound=AbstractConnection)


async def keep_connected(
    settings: Settings,
    purpose: str,
    use: Callable[[Connection], Awaitable[None]],
    on_failure: Callable[[WorkerError], None],
    *,
    backoff: Backoff = RECONNECT,
    until: asyncio.Event | None = None,
) -> None:
    """Open a connection and `use` it, again and again, until this is cancelled or `until` is set: see
    `keep`."""
    await keep(partial(connected, settings, purpose), use, on_failure, backoff=backoff, until=until)


async def keep(
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
    clock = asyncio.get_running_loop().time
    opened_at: float | None = None
    lasting = 0  # the number of tries up to the last one that lasted

    async def once() -> None:
        nonlocal opened_at
        opened_at = None
        try:
            async with source() as connection:
                opened_at = clock()
                await use(connection)
        except Exception as error:
            if isinstance(error, WorkerError):
                raise
            raise BrokerUnreachable(f"internal error: {type(error).__name__}") from error
        raise _Ended

    def wait(state: RetryCallState) -> float:
        nonlocal lasting
        has_lasted = opened_at is not None and clock() - opened_at > STABLE_AFTER
        if has_lasted or isinstance(_error(state), _Ended):
            lasting = state.attempt_number - 1
        return backoff.draw(state.attempt_number - lasting)

    def tell(state: RetryCallState) -> None:
        error = _error(state)
        if isinstance(error, WorkerError) and not isinstance(error, _Ended):
            on_failure(error)

    await AsyncRetrying(
        retry=retry_if_exception_type(WorkerError),
        wait=wait,
        sleep=lambda seconds: pause(seconds, until),
        before_sleep=tell,
        stop=lambda _: until is not None and until.is_set(),
        retry_error_callback=lambda _: None,
    )(once)


async def pause(seconds: float, until: asyncio.Event | None) -> None:
    """Wait for so many seconds, or until the event is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await (until.wait() if until is not None else asyncio.get_running_loop().create_future())


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


class _Ended(WorkerError):
    """`use` has ended by itself."""
