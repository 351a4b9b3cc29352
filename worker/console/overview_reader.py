"""The overview of the broker, read over and over on one connection."""

from worker.amqp.connection import Connection, connect
from worker.broker.overview import Overview, read_overview
from worker.broker.topology import Topology
from worker.settings import Settings


class OverviewReader:
    """Keeps its connection, and opens another one when that is lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: Connection | None = None

    async def read(self) -> Overview:
        """The overview now. Raises BrokerUnreachable."""
        if self._connection is None or not self._connection.is_open:
            self._connection = None
            self._connection = await connect(self._settings, "console")
        return await read_overview(self._connection, Topology(self._settings.prefix))

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()
