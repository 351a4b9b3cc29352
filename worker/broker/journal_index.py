"""The newest registration of each resource in the journal, and how far back it is known."""

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

from worker.amqp.stream_reader import Entry, Start, StreamReader
from worker.contract.settlement import Resource, Settlement, recorded_id
from worker.contract.timestamps import SKEW, microseconds

LIMIT = 100_000_000  # bytes; room for a million resources
PAGE_SIZE = 4096  # bytes

_KEEP_NEWEST = """
    INSERT INTO newest VALUES (?1, ?2, ?3)
    ON CONFLICT (resource) DO UPDATE SET true_at = ?2, id = ?3 WHERE true_at < ?2
"""
_KEEP_KNOWN = "UPDATE newest SET true_at = ?2, id = ?3 WHERE resource = ?1 AND true_at < ?2"

Row = tuple[int, int, str]


class JournalIndex:
    """The newest registered request of each resource, among those with a time after `since`.

    Times are microseconds since the epoch: a request's `x-ott-as-of`, else its arrival by the workers' clock,
    which never goes back, not even at a fail-over. No comparison depends on the broker's clock.

    The index uses at most LIMIT bytes of memory. When it is full, known resources are still updated, and
    others are unknown."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.next_offset = 0
        self.began_at: Entry | None = None  # the first entry that was read
        # The stream's first entry after the last reading; entries trimmed during it were not read.
        self.first: Entry | None = None
        self._own: dict[tuple[str, int], tuple[int, int]] = {}
        self._hash_key = os.urandom(16)  # secret, so that no publisher can choose colliding ids
        self._newest = sqlite3.connect(":memory:", isolation_level=None)
        self._newest.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        self._newest.execute("CREATE TABLE newest (resource INTEGER PRIMARY KEY, true_at INTEGER, id TEXT)")

    def read(self, entry: Entry, oldest: Entry | None) -> None:
        """Add an entry. `oldest` is the stream's first entry, if it is known."""
        self.began_at = self.began_at or entry
        self.next_offset = max(self.next_offset, entry.offset + 1)
        registered: list[Row] = []
        for record in entry.records:
            received_at = microseconds(str(record.get("receivedAt")))
            if received_at is None:
                continue
            resource, request_id = _resource(record), _utf8(str(record.get("id")))
            if record.get("status") == "registered" and resource is not None:
                true_at = microseconds(str(record["asOf"])) if "asOf" in record else received_at
                registered.append((self._key(resource), true_at or received_at, request_id))
            if oldest is not None and not record.get("replay") and received_at <= (oldest.clock or 0):
                self._own[request_id, received_at] = (entry.offset, self._key(resource))
        self._keep(registered)

    def settled(self, settlement: Settlement) -> None:
        """Add a record that this worker has written since the journal was read."""
        resource, request_id = settlement.resource, _as_recorded(settlement.request_id)
        if settlement.status == "registered" and resource is not None:
            self._keep([(self._key(resource), settlement.true_at, request_id)])
        first = self.first
        begins_late = first is None or settlement.received_at <= (first.clock or 0)
        if begins_late and not settlement.is_replay:
            self._own[request_id, settlement.received_at] = (self.next_offset, self._key(resource))

    def _keep(self, registered: Iterable[Row]) -> None:
        with self._newest:
            self._newest.executemany(_KEEP_KNOWN if self.is_full else _KEEP_NEWEST, registered)

    @property
    def is_full(self) -> bool:
        """Whether no further resource fits."""
        (pages,) = self._newest.execute("PRAGMA page_count").fetchone()
        return bool(pages * PAGE_SIZE >= LIMIT)

    def _newest_of(self, resource: Resource) -> tuple[int, str] | None:
        found = self._newest.execute(
            "SELECT true_at, id FROM newest WHERE resource = ?", (self._key(resource),)
        )
        return cast(tuple[int, str] | None, found.fetchone())

    def newer_than(self, resource: Resource, true_at: int) -> str | None:
        """The id of the newest registered request, if its time is later than `true_at`."""
        newest = self._newest_of(resource)
        return newest[1] if newest is not None and newest[0] > true_at else None

    @property
    def is_empty(self) -> bool:
        """Whether the journal was empty."""
        return self.began_at is None

    def continues(self, first: Entry | None) -> bool:
        """Whether reading can continue where it ended if the stream now begins with `first`: no unread entry
        was trimmed, and it is not another stream of the same name."""
        known = self.first
        if first is None or known is None or first.offset > self.next_offset:
            return False
        return first.offset > known.offset or first.clock == known.clock

    def reaches_back_to(self, request_id: str, resource: Resource, received_at: int) -> bool:
        """Whether every newer registration of the resource is known (contract §4).

        They are known if the oldest entry was written before the request was received. Otherwise the
        request's own record proves it, because it shows that the journal was kept then: if nothing was ever
        trimmed, or if the record is of this resource, because later requests for the resource were settled
        after it."""
        first = self.first
        if first is None or first.clock is None or received_at < self.since:
            return False
        if self.is_full and self._newest_of(resource) is None:
            return False
        if first.clock <= received_at:
            return True
        offset, own_resource = self._own.get((_as_recorded(request_id), received_at), (-1, 0))
        return offset >= first.offset and (first.offset == 0 or own_resource == self._key(resource))

    def _key(self, resource: Resource | None) -> int:
        """A short key, so that memory does not grow with the length of ids."""
        if resource is None:
            return 0
        text = f"{resource.account}\0{resource.platform}\0{recorded_id(resource.id)}"
        digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8, key=self._hash_key)
        return int.from_bytes(digest.digest(), signed=True)


async def read_into(
    index: JournalIndex, reader: StreamReader, first: Entry | None, since: int | None = None
) -> None:
    """Read further, to the end of the journal, whose first entry is `first`; and further back, if `since` is
    earlier than before. Raises as StreamReader does; what was read until then stays in the index."""
    last = await reader.last()
    since = index.since if since is None else min(since, index.since)

    async def read_from(start: Start, end: int | None = None) -> Entry | None:
        """Read to the offset `end`, or to the end, and return the first entry. After each entry other tasks
        get as much time as it took."""
        began_at, begun = None, time.monotonic()
        async for entry in reader.read(start, end, reach=-1 if last is None else last.offset):
            began_at = began_at or entry
            index.read(entry, first)
            await asyncio.sleep(time.monotonic() - begun)
            begun = time.monotonic()
        return began_at

    if index.began_at is not None:
        await read_from(index.next_offset)
    # If the broker's clock differs too much, reading from a time begins too late. Then read from the first.
    for start in (around(since), "first"):
        if not covers(index.began_at, first, since):
            end = None if index.began_at is None else index.began_at.offset
            index.began_at = await read_from(start, end) or index.began_at
    index.since = since
    index.first = await reader.first()


def covers(began_at: Entry | None, first: Entry | None, since: int) -> bool:
    """Whether reading began early enough: at the stream's first entry, or before `since`."""
    if first is None or began_at is None:
        return first is None
    return began_at.offset <= first.offset or (began_at.clock is not None and began_at.clock <= since)


def around(moment: int) -> datetime:
    """The broker's time from which to read everything written since `moment` (microseconds)."""
    return datetime.fromtimestamp(max(0, moment - SKEW) / 1_000_000, UTC)


def _resource(record: dict[str, Any]) -> Resource | None:
    account, platform, resource_id = (record.get(k) for k in ("accountId", "ottPlatformName", "resourceId"))
    if not isinstance(platform, str) or not isinstance(resource_id, str):
        return None
    return Resource(account if isinstance(account, str) else None, platform, resource_id)


def _as_recorded(request_id: str) -> str:
    """The id as the journal holds it: characters that UTF-8 cannot encode, from AMQP properties, are
    replaced."""
    return _utf8(recorded_id(request_id))


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()
