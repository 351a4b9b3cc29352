"""The dead letter queue, opened for one command at a time."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from worker.amqp.connection import Connection, connect
from worker.amqp.queue_browser import QueueBrowser, depth, lock
from worker.broker.encryption import Seals
from worker.broker.topology import Topology
from worker.dead_letters.letter import Letter, opened, read
from worker.dead_letters.selection import Selection
from worker.settings import Settings

SEAL_BYTES = 1024  # more than encryption adds to a body

Letters = AsyncGenerator[Letter, None]


class DeadLetterBox:
    """All dead letters. Every method raises TopologyError, QueueInUse or BrokerUnreachable."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._queue = Topology(settings.prefix).dead
        self._default_account = settings.mc_account_id
        self._seals = Seals(settings)
        self._max_body_bytes = settings.max_body_bytes + SEAL_BYTES

    async def look(self, selection: Selection) -> Letters:
        """The letters of a selection, oldest first; the queue is as before when this has ended."""
        async with QueueBrowser(self._connection, self._queue, self._max_body_bytes) as browser:
            count = await depth(self._connection, self._queue)
            async with contextlib.aclosing(browser.look(count)) as deliveries:
                async for delivery in deliveries:
                    letter = read(opened(delivery, self._seals), self._default_account)
                    if letter in selection:
                        yield letter

    async def depth(self) -> int:
        """How many there are."""
        return await depth(self._connection, self._queue)

    @contextlib.asynccontextmanager
    async def take(self, count: int, held: int) -> AsyncIterator["Removal"]:
        """The oldest `count` letters, to remove all but about `held` of them."""
        async with QueueBrowser(self._connection, self._queue, self._max_body_bytes) as browser:
            yield Removal(browser, count, held, self._default_account, self._seals)


class Removal:
    """Letters that may be removed; those that are not go back to their places."""

    def __init__(
        self, browser: QueueBrowser, count: int, held: int, default_account: str | None, seals: Seals
    ) -> None:
        self._browser = browser
        self._count = count
        self._held = held
        self._default_account = default_account
        self._seals = seals

    async def letters(self) -> Letters:
        """All of them, oldest first, one at a time."""
        async with contextlib.aclosing(self._browser.take(self._count, self._held)) as deliveries:
            async for delivery in deliveries:
                yield read(opened(delivery, self._seals), self._default_account)

    def check(self) -> None:
        """Raise BrokerUnreachable if the letters are not ours any more."""
        self._browser.check()

    async def remove(self, letter: Letter) -> None:
        """Remove a letter for good."""
        await self._browser.remove(letter.delivery)


@contextlib.asynccontextmanager
async def open_box(settings: Settings) -> AsyncIterator[DeadLetterBox]:
    """The dead letters, and nobody else at them meanwhile."""
    connection = await connect(settings, "dead-letters")
    try:
        async with lock(connection, Topology(settings.prefix).dead):
            yield DeadLetterBox(connection, settings)
    finally:
        await connection.close()
