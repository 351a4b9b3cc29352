"""The last hour, as the journal tells it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from worker.amqp.stream_reader import StreamReader
from worker.broker.last_hour import MINUTE, LastHour


class Journal:
    """One message with these records."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self._entry = SimpleNamespace(offset=0, records=records)

    async def first(self) -> SimpleNamespace:
        return self._entry

    last = first

    async def read(self, *_: int) -> AsyncIterator[SimpleNamespace]:
        yield self._entry


async def test_a_replay_counts_and_the_time_since_its_first_receipt_is_no_latency():
    now = datetime.now(UTC)

    def record(received_ago: float, **more: Any) -> dict[str, Any]:
        received = now - timedelta(seconds=received_ago)
        times = {"completedAt": now.isoformat(), "receivedAt": received.isoformat()}
        return {"status": "registered", **times, **more}

    hour = LastHour()
    await hour.read(cast(StreamReader, Journal(record(2), record(7200, replay=True))))
    assert hour.settled(MINUTE)["registered"] == 2
    assert hour.latency() == {"median": 2.0, "p95": 2.0}
