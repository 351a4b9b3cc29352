"""What the broker tells of the workers, the queues and the orders: read on one connection of its own."""

import asyncio
from dataclasses import dataclass, field

from worker.amqp.connection import Connection, connect
from worker.amqp.queue_browser import depth
from worker.broker.control_stream import read_orders_by
from worker.broker.journal_reader import JournalReader
from worker.broker.status_stream import read_workers_by
from worker.broker.topology import Topology
from worker.contract.control import Order, Pause, standing_pause
from worker.contract.status import WorkerStatus
from worker.errors import BrokerUnreachable, TopologyError
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class BrokerState:
    """`depths` holds the messages by queue (`requests`, `replies`, `dead`); one that may not be read is left
    out. `orders` is the oldest first. `problems` says what could not be read, and why."""

    workers: list[WorkerStatus] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    depths: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def pause(self) -> Pause | None:
        """The pause that stands."""
        return standing_pause(self.orders)

    @property
    def in_flight(self) -> int:
        return sum(worker.in_flight for worker in self.workers)

    @property
    def rate(self) -> float:
        """Requests settled a second, by all workers."""
        return sum(worker.rate_per_second for worker in self.workers)


class BrokerReader:
    """Reads the state over and over, on a connection that is kept."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = Topology(settings.prefix)
        self._connection: Connection | None = None

    async def read(self) -> BrokerState:
        """The state now. Raises BrokerUnreachable."""
        connection = await self._connected()
        state = BrokerState()
        for name in ("requests", "replies", "dead"):
            try:
                state.depths[name] = await depth(connection, getattr(self._names, name))
            except TopologyError as error:
                state.problems.append(str(error))
        try:
            state.workers.extend(await read_workers_by(JournalReader(connection, self._names.status)))
        except TopologyError as error:
            state.problems.append(str(error))
        try:
            state.orders.extend(await read_orders_by(JournalReader(connection, self._names.control)))
        except TopologyError as error:
            state.problems.append(str(error))
        return state

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            try:
                self._connection = await connect(self._settings, "console")
            except asyncio.CancelledError:
                raise
            except BrokerUnreachable:
                self._connection = None
                raise
        return self._connection
