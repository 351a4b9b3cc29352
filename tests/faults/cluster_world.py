"""A deployment on a cluster: each worker runs on the host of one node and knows all three addresses."""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Self

import aio_pika
import aio_pika.exceptions

from tests.faults.checker import Findings
from tests.faults.cluster import Cluster, ClusterNode
from tests.faults.faults import QUICK_GATE
from tests.faults.load import QUORUM, old_body, unless_lost
from tests.faults.network import HOSTS, HUB
from tests.faults.workers import Worker
from tests.faults.world import World
from worker.contract.words import RECEIVED_AT_HEADER, REPLAY_KEY, REQUEST_ID_HEADER

JOURNAL_TIMEOUT = 60.0  # seconds
REPLAY_TIMEOUT = 90.0  # seconds until replays are answered
REPLAY_ATTEMPT = 20.0  # seconds, on one connection
# By default RabbitMQ's nodes give each other up after 45 to 75 s without a word; here after 6 to 10 s
# (cluster.TICK). The worker's lease must be as much shorter.
CLOCKS = {
    "worker.amqp.consumer.LEASE": 1.5,
    "worker.amqp.consumer.LEASE_RENEWAL_INTERVAL": 0.5,
    "worker.amqp.consumer.LEASE_TIMEOUT": 4,
}
ENVIRONMENT = {
    "OTT_ADMIN_PORT": "",
    "OTT_MC_INSECURE_HTTP": "true",
    "FAULTS_CLOCKS": ",".join([QUICK_GATE, *(f"{clock}={seconds}" for clock, seconds in CLOCKS.items())]),
}


class ClusterWorld(World):
    """There is no proxy on the way to the broker, and so nobody who listens: promise I3 is not looked at."""

    def __init__(
        self,
        cluster: Cluster,
        prefix: str,
        folder: Path,
        *,
        seed: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        given = {**ENVIRONMENT, **(environment or {})}
        super().__init__(",".join(cluster.urls), prefix, folder, seed=seed, environment=given)
        self.cluster = cluster
        self._replays = itertools.count()
        self._begun_at = datetime.now(UTC).isoformat()
        self._struck_at: list[float] = []
        self.sandbox_host = cluster.network.address(HUB)

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.load.dates_half = True
        async with await self.load.connect() as connection:
            channel = await connection.channel()
            await channel.declare_queue(self._replayed, durable=True, arguments=QUORUM)
        return self

    def enter_host(self, worker: int) -> Sequence[str]:
        """On its host, and with the node there first in its OTT_AMQP_URL."""
        nearest = sorted(self.cluster.nodes.values(), key=lambda node: node.number != _host(worker))
        urls = ",".join(node.url for node in nearest)
        return [*self.cluster.network.enter(_host(worker)), "env", f"OTT_AMQP_URL={urls}"]

    def node_of(self, worker: Worker) -> ClusterNode:
        """The node on the worker's host."""
        return self.cluster.nodes[_host(worker.number)]

    async def heal(self) -> None:
        await self.cluster.revive()

    def struck(self) -> None:
        super().struck()
        self._struck_at.append(time.time())

    async def findings(self, *, last: bool = True) -> Findings:
        """As for one node; and the journal holds a record of each request that was answered. A strike's
        recovery is the longest silence until the next one."""
        findings = await super().findings(last=last)
        self.recoveries = [
            self.load.silence(since, until) for since, until in pairwise([*self._struck_at, math.inf])
        ]
        recorded = {json.loads(record)["id"] for record in await self._journal()}
        missing = self.load.answered - recorded
        if missing:
            findings.lost += len(missing)
            findings.broken.append(f"{len(missing)} answered without a record, such as {sorted(missing)[:3]}")
        return findings

    async def replay(self) -> None:
        """Replay two letters: one of a page that has been registered since must be superseded, and a recent
        one of another page registered. The worker decides by the journal, which must be whole for that."""
        registered = [request.resource for request in self.load.sent if request.id in self.load.answered]
        known = next((resource for resource in reversed(registered) if resource), None)
        number = next(self._replays)
        wanted = {f"replay-{number}-new": ("registered", str(3 * 10**9 + number))}
        if known is not None:
            wanted[f"replay-{number}-old"] = ("superseded", known)
        told: dict[str, str] = {}
        deadline = time.monotonic() + REPLAY_TIMEOUT
        while told.keys() != wanted.keys():
            assert time.monotonic() < deadline, f"replays were not answered: {told} of {list(wanted)}"
            # The cluster may still be coming together, and end the connection.
            with unless_lost():
                async with asyncio.timeout(REPLAY_ATTEMPT), await self.load.connect() as connection:
                    channel = await connection.channel()
                    answers = await channel.get_queue(self._replayed, ensure=False)
                    for request_id, (_, resource) in wanted.items():
                        letter = self._letter(request_id, resource, is_recent=resource != known)
                        await (await channel.get_exchange(self.prefix)).publish(letter, REPLAY_KEY)
                    async with answers.iterator(no_ack=True) as replies:
                        async for reply in replies:
                            document = json.loads(reply.body)
                            told[document["requestId"]] = document["status"]
                            if told.keys() >= wanted.keys():
                                break
            told = {request_id: status for request_id, status in told.items() if request_id in wanted}
        assert told == {request_id: status for request_id, (status, _) in wanted.items()}

    def _letter(self, request_id: str, resource: str, *, is_recent: bool) -> aio_pika.Message:
        return aio_pika.Message(
            old_body(resource),
            message_id=request_id,
            reply_to=self._replayed,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers={
                RECEIVED_AT_HEADER: datetime.now(UTC).isoformat() if is_recent else self._begun_at,
                REQUEST_ID_HEADER: request_id,
            },
        )

    @property
    def _replayed(self) -> str:
        """The queue for the replies to replays."""
        return f"{self.prefix}.test-replayed"

    async def delete_reply_queue(self) -> None:
        await super().delete_reply_queue()
        async with await self.load.connect() as connection:
            await (await connection.channel()).queue_delete(self._replayed)

    async def _journal(self) -> list[str]:
        """As for one node. A node that has just come back may not show its replica of a stream yet."""
        deadline = time.monotonic() + JOURNAL_TIMEOUT
        while True:
            try:
                return await super()._journal()
            except aio_pika.exceptions.AMQPError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(1)

    async def _way_to_the_broker(self) -> str:
        return self.url


def _host(worker: int) -> int:
    return HOSTS[(worker - 1) % len(HOSTS)]
