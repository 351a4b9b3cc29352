"""Keeping a connection to RabbitMQ: opened again whenever it is lost, for as long as somebody needs it."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

from aio_pika.abc import AbstractConnection

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
    it returns, the next one is opened soon. `on_failure` is told each error, and may raise it to end this.
    A defect is told as BrokerUnreachable: the task must not end unheard."""
    until = until or asyncio.Event()
    clock, failures = asyncio.get_running_loop().time, 0
    while True:
        opened_at, error = math.inf, None
        try:
            async with source() as connection:
                opened_at = clock()
                await use(connection)
        except WorkerError as raised:
            error = raised
        except Exception as defect:
            error = BrokerUnreachable(f"internal error: {type(defect).__name__}")
            error.__cause__ = defect
        if until.is_set():
            return
        if error is not None:
            on_failure(error)
        has_lasted = clock() - opened_at > STABLE_AFTER
        failures = 1 if error is None or has_lasted else failures + 1
        await pause(backoff.draw(failures), until)


async def pause(seconds: float, until: asyncio.Event) -> None:
    """Wait for so many seconds, or until the event is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()
