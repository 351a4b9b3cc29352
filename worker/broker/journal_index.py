"""The newest registration of each resource according to the journal, and how far back that is known."""

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from worker.amqp.stream_reader import Entry, Start, StreamReader
from worker.contract.journal_record import recorded_id
from worker.contract.resource import Resource
from worker.contract.settlement import Settlement
from worker.contract.timestamps import microseconds

LIMIT = 300_000  # resources, about 70 MB
SKEW = 600_000_000  # microseconds; a smaller difference of the broker's clock costs no second reading


@dataclass(slots=True)
class JournalIndex:
    """The newest registered request of each resource, among those received after `since`.

    Times are microseconds since the epoch by the workers' arrival clock, which never goes back, not even
    at a fail-over. No comparison here depends on the broker's clock.
    """

    since: int
    next_offset: int = 0
    began_at: Entry | None = None  # the first entry that was read
    _registered: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    _own: dict[tuple[str, int], tuple[int, bytes]] = field(default_factory=dict)
    _first: Entry | None = None

    def read(self, entry: Entry, oldest: Entry | None) -> None:
        """Add an entry. `oldest` is the stream's first entry, as far as is known."""
        self.began_at = self.began_at or entry
        self.next_offset = entry.offset + 1
        for record in entry.records:
            received_at = microseconds(str(record.get("receivedAt")))
            if received_at is None:
                continue
            resource = _resource(record)
            if record.get("status") == "registered" and resource is not None:
                self.registered(resource, received_at, str(record.get("id")))
            if oldest is not None and not record.get("replay") and received_at <= (oldest.clock or 0):
                self._own[str(record.get("id")), received_at] = (entry.offset, digest(resource))

    def settled(self, settlement: Settlement) -> None:
        """Add the records that this worker has written since it began to read the journal."""
        resource = settlement.resource
        if settlement.status == "registered" and resource is not None:
            self.registered(resource, settlement.received_at, settlement.request_id)
        first = self._first
        begins_late = first is None or settlement.received_at <= (first.clock or 0)
        if begins_late and not settlement.is_replay:
            own = (self.next_offset, digest(resource))
            self._own[_as_recorded(settlement.request_id), settlement.received_at] = own

    def registered(self, resource: Resource, received_at: int, request_id: str) -> None:
        """A request was registered."""
        if received_at <= self.since or self.is_full:
            return
        key = digest(resource)
        known = self._registered.get(key)
        if known is None or known[0] < received_at:
            self._registered[key] = (received_at, request_id)

    @property
    def is_full(self) -> bool:
        """Whether there are more resources than fit. Such an index proves nothing."""
        return len(self._registered) >= LIMIT

    def newer_than(self, resource: Resource, received_at: int) -> str | None:
        """The id of the newest registered request, if it was received later than `received_at`."""
        known = self._registered.get(digest(resource))
        return known[1] if known is not None and known[0] > received_at else None

    def complete(self, first: Entry | None) -> None:
        """Everything has been read. `first` is the stream's first entry afterwards: entries that were trimmed
        during the reading count as not read."""
        self._first = first

    def covers(self, first: Entry | None) -> bool:
        """Whether reading began early enough: at the stream's beginning, or before `since`."""
        if first is None or self.began_at is None:
            return first is None
        begun = self.began_at
        return begun.offset <= first.offset or (begun.clock is not None and begun.clock <= self.since)

    @property
    def is_empty(self) -> bool:
        """Whether the journal held nothing."""
        return self.began_at is None

    def continues(self, first: Entry | None) -> bool:
        """Whether reading can go on where it ended, now that the stream begins with `first`: nothing was
        trimmed in between, and it is not another stream of the same name."""
        known = self._first
        if first is None or known is None or first.offset > self.next_offset:
            return False
        return first.offset > known.offset or first.clock == known.clock

    def reaches_back_to(self, request_id: str, resource: Resource, received_at: int) -> bool:
        """Whether every newer registration of the resource is sure to be known (contract §4).

        They are, if the oldest entry was written before the request was received. Otherwise the request's own
        record proves it, because the journal was kept at that time: if nothing was ever trimmed, or if the
        record names this resource, since later requests for it were settled after it.
        """
        first = self._first
        if first is None or first.clock is None or received_at < self.since or self.is_full:
            return False
        if first.clock <= received_at:
            return True
        offset, own_resource = self._own.get((_as_recorded(request_id), received_at), (-1, b""))
        return offset >= first.offset and (first.offset == 0 or own_resource == digest(resource))


async def read_into(index: JournalIndex, reader: StreamReader, first: Entry | None) -> None:
    """Read on, to the end of the journal, whose first entry is `first`. Raises as StreamReader does."""
    last = await reader.last()
    reach = -1 if last is None else last.offset
    if index.began_at is None:
        await _read_from(around(index.since), index, reader, first, reach)
        if not index.covers(first):
            # The broker's clock is far from ours, so its times do not help to find the place.
            index.began_at = None
            await _read_from("first", index, reader, first, reach)
    else:
        await _read_from(index.next_offset, index, reader, first, reach)
    index.complete(await reader.first())


async def _read_from(
    start: Start, index: JournalIndex, reader: StreamReader, first: Entry | None, reach: int
) -> None:
    async with contextlib.aclosing(reader.read(start, reach=reach)) as entries:
        async for entry in entries:
            index.read(entry, first)


def around(moment: int) -> datetime:
    """Where to begin reading to find everything written since `moment` (microseconds)."""
    return datetime.fromtimestamp(max(0, moment - SKEW) / 1_000_000, UTC)


def _resource(record: dict[str, Any]) -> Resource | None:
    account, platform, resource_id = (record.get(k) for k in ("accountId", "ottPlatformName", "resourceId"))
    if not isinstance(platform, str) or not isinstance(resource_id, str):
        return None
    return Resource(account if isinstance(account, str) else None, platform, resource_id)


def digest(resource: Resource | None) -> bytes:
    """A short key, so that memory does not grow with the length of ids."""
    text = json.dumps(resource and resource._replace(id=recorded_id(resource.id))).encode()
    return hashlib.blake2b(text, digest_size=16, person=b"ott-resource").digest()


def _as_recorded(request_id: str) -> str:
    """Ids come from AMQP properties and may hold characters that UTF-8 cannot encode. The journal replaces
    them."""
    return recorded_id(request_id).encode(errors="replace").decode()
