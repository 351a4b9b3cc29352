"""The workers among which the partitions are spread (contract §10), as PREFIX.status tells.

Each worker computes by itself which one is to have which partition. A wrong belief does no harm, because
RabbitMQ gives a partition to one consumer at a time.
"""

import asyncio
import contextlib
import time
from functools import cache
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.amqp.connection import Connection
from worker.amqp.stream_reader import StreamReader
from worker.errors import BrokerUnreachable, TopologyError

SILENT_AFTER = 11.0  # seconds; two of a worker's records did not come (contract.status.STATUS_INTERVAL)
RETRY_INTERVAL = 2.0  # seconds between attempts to read on
GONE = frozenset({"draining", "stopped"})
WITH_PRIORITIES = ("1.0.", "1.1.")  # releases whose consumers have a priority


@cache
def weight(worker: str, partition: int) -> int:
    """Rendezvous (highest-random-weight) hashing: adding or removing a worker moves only its own
    partitions."""
    key = f"{worker} {partition}".encode(errors="replace")
    return int.from_bytes(blake2b(key, digest_size=8, person=b"ott-rendezvous").digest())


class _Heard(BaseModel):
    """What counts here of a worker's record."""

    model_config = ConfigDict(hide_input_in_errors=True)

    worker: str
    version: str = ""
    state: str = ""


class Members:
    """The workers of a prefix: `worker` itself, and those that were heard of lately."""

    def __init__(self, worker: str, stream: str) -> None:
        self.worker = worker
        self._stream = stream
        self._joined: dict[str, float] = {}
        self._heard: dict[str, tuple[float, str]] = {}  # when, and its version

    def owner(self, partition: int) -> tuple[str, float]:
        """The worker that is to have a partition, and since when it is known (monotonic seconds)."""
        silent = time.monotonic() - SILENT_AFTER
        for name in [name for name, (at, _) in self._heard.items() if at < silent]:
            self._forget(name)
        best = max((self.worker, *self._heard), key=lambda worker: (weight(worker, partition), worker))
        return best, self._joined.get(best, 0.0)

    @property
    def have_priorities(self) -> bool:
        """Whether one of the others may take a partition between two deliveries, and give it back: RabbitMQ
        4 lets a consumer with a priority do so."""
        return any(version.startswith(WITH_PRIORITIES) for _, version in self._heard.values())

    def hear(self, document: object) -> None:
        """Take in a record of the status stream."""
        try:
            record = _Heard.model_validate(document)
        except ValidationError:
            return
        if record.state in GONE:
            self._forget(record.worker)
        elif record.worker != self.worker:
            now = time.monotonic()
            self._joined.setdefault(record.worker, now)
            self._heard[record.worker] = (now, record.version)

    async def follow(self, connection: Connection) -> None:
        """Read the records as they come, until cancelled. Without the stream, no other worker is known."""
        reader = StreamReader(connection, self._stream)
        while True:
            with contextlib.suppress(BrokerUnreachable, TopologyError):
                async with contextlib.aclosing(reader.follow("last")) as entries:
                    async for entry in entries:
                        for document in entry.records:
                            self.hear(document)
            await asyncio.sleep(RETRY_INTERVAL)

    def _forget(self, worker: str) -> None:
        self._heard.pop(worker, None)
        self._joined.pop(worker, None)
