"""The dead letter queue, opened for one command."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC
from typing import TypeVar

from worker.amqp.connection import Connection, connected
from worker.amqp.consumer import Delivery
from worker.amqp.queue import Deliveries, QueueBrowser, depth, hold, lock
from worker.broker.encryption import Encryptor
from worker.broker.topology import Topology
from worker.contract.selection import Selection
from worker.dead_letters.letter import Letter
from worker.errors import WorkerError
from worker.settings import Settings

SEAL_BYTES = 1024  # more than encryption adds to a body

Row = TypeVar("Row")
OnWait = Callable[[str], None]
"""Called once, with a text that says what the command waits for."""


class DeadLetterQueue:
    """All dead letters. Every method raises TopologyError, QueueInUse or BrokerUnreachable.

    Only one browser reads the queue at a time, for a few seconds at most. A change excludes other changes
    from begin to end, but lets browsers read in between."""

    def __init__(self, connection: Connection, settings: Settings, on_wait: OnWait) -> None:
        self._connection = connection
        self._settings = settings
        self._name = Topology(settings.prefix).dead
        self._on_wait = on_wait
        self._encryptor = Encryptor(settings)

    async def look(self, selection: Selection) -> AsyncGenerator[Letter, None]:
        """The letters of a selection, oldest first. When this has ended, the queue is as before."""
        async with (
            self._browser() as (browser, count),
            contextlib.aclosing(browser.look(count)) as deliveries,
        ):
            async for delivery in deliveries:
                letter = self.open(delivery)
                if letter.facts in selection:
                    yield letter

    def open(self, delivery: Delivery) -> Letter:
        """The letter in a delivery."""
        return Letter(delivery, self._encryptor, self._settings.mc_account_id)

    async def read(
        self, selection: Selection, row: Callable[[Letter], Row], limit: int | None = None
    ) -> list[Row]:
        """The result of `row` for each letter of a selection, oldest first, up to `limit`."""
        rows: list[Row] = []
        async with contextlib.aclosing(self.look(selection)) as letters:
            async for letter in letters:
                rows.append(row(letter))
                if len(rows) == limit:
                    break
        return rows

    async def find(
        self, selection: Selection, row: Callable[[Letter], Row]
    ) -> tuple[list[Row], frozenset[str]]:
        """As `read`, but a request id must identify one letter; also returns the ids without a letter. Raises
        AmbiguousId."""
        found = await self.read(selection, lambda letter: (letter.facts, row(letter)))
        keys = selection.keys(facts for facts, _ in found)
        rows = [row for facts, row in found if facts["letter"] in keys]
        return rows, selection.missing(facts for facts, _ in found)

    async def depth(self) -> int:
        """The number of letters."""
        return await depth(self._connection, self._name)

    @contextlib.asynccontextmanager
    async def take(self, wanted: int) -> AsyncIterator[tuple[QueueBrowser, Deliveries]]:
        """All letters, oldest first, to remove about `wanted` of them with the browser. The others return to
        their positions."""
        async with (
            self._browser() as (browser, count),
            contextlib.aclosing(browser.take(count, count - wanted)) as deliveries,
        ):
            yield browser, deliveries

    def change(self) -> AbstractAsyncContextManager[None]:
        """Exclude other changes. Waits while another one is in progress."""
        return hold(self._connection, f"{self._name}.change", self._report_wait)

    @contextlib.asynccontextmanager
    async def _browser(self) -> AsyncIterator[tuple[QueueBrowser, int]]:
        """A browser, and the number of letters, counted under its lock: while another browser reads, no
        letter is ready."""
        async with (
            lock(self._connection, self._name, self._report_wait),
            QueueBrowser(self._connection, self._name, self._settings.max_body_bytes + SEAL_BYTES) as browser,
        ):
            yield browser, await self.depth()

    async def _report_wait(self) -> None:
        from worker.broker.status import read_orders  # noqa: PLC0415 # slow to load, and rarely needed

        who = "Another dead-letters command is running"
        with contextlib.suppress(WorkerError):
            changes = [each for each in await read_orders(self._settings) if each.run]
            if changes and (last := changes[-1]).order in ("replaying", "discarding"):
                since = f"{last.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
                who = f"{last.by} has been {last.order} dead letters since {since}"
        self._on_wait(f"{who}: waiting until that ends")


@contextlib.asynccontextmanager
async def open_dead_letters(
    settings: Settings, on_wait: OnWait = lambda _: None
) -> AsyncIterator[DeadLetterQueue]:
    """The dead letters, on their own connection. `on_wait` is called if a method has to wait."""
    async with connected(settings, "dead-letters") as connection:
        yield DeadLetterQueue(connection, settings, on_wait)
