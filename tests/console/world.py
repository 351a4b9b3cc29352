"""A deployment with a past: dead letters of several causes, an hour of journal, and workers."""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika

from tests.rig import DEFAULT_URL, LINE, MESSENGER, delete_objects
from worker.amqp.connection import connect
from worker.broker import topology
from worker.broker.status_stream import StatusPublisher
from worker.contract.status import GateStatus, WorkerStatus
from worker.release import version
from worker.settings import Settings, load_settings

TOKEN = "10006 Please fix the following errors: The page access token has expired"
# Reason, error, platform, share of all letters.
CAUSES = (
    ("rejected", TOKEN, "messenger", 0.62),
    ("exhausted", "50300 Marketing Cloud answered 503: Service unavailable", "messenger", 0.21),
    ("invalid", "10006 Please fix the following errors: ChannelSecret must be provided", "line", 0.12),
    ("forbidden", "20002 Insufficient privileges", "line", 0.05),
)


@contextlib.asynccontextmanager
async def world(letters: int, prefix: str = "") -> AsyncIterator[Settings]:
    """Settings of a deployment that lasts as long as the block, on the broker that OTT_AMQP_URL names."""
    url = os.environ.get("OTT_AMQP_URL") or DEFAULT_URL
    prefix = prefix or f"console.{uuid4().hex[:8]}"
    settings = load_settings(amqp_url=url, prefix=prefix, console_port=0)
    connection = await connect(settings, "world")
    await topology.ensure(connection, settings)
    await connection.close()
    publishers = [
        asyncio.create_task(StatusPublisher(settings, _describing(name, state)).run())
        for name, state in (("worker-7f9c4-x2kqp:1", "active"), ("worker-7f9c4-9fzhm:1", "standby"))
    ]
    try:
        await _publish(url, prefix, letters)
        yield settings
    finally:
        for publisher in publishers:
            publisher.cancel()
        await asyncio.wait(publishers)
        await delete_objects(url, prefix)


def _describing(name: str, state: Any) -> Any:
    def describe() -> WorkerStatus:
        is_active = state == "active"
        return WorkerStatus(
            worker=f"{name}:20261125T031200Z",
            version=version(),
            at=datetime.now(UTC),
            state=state,
            gate=GateStatus(state="open"),
            in_flight=38 if is_active else 0,
            rate_per_second=41.7 if is_active else 0.0,
            reconnects=0,
        )

    return describe


async def _publish(url: str, prefix: str, letters: int) -> None:
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        dead = await channel.get_exchange(f"{prefix}.dead", ensure=False)
        dice = random.Random(7)
        pending = [dead.publish(_letter(dice, number, letters), "") for number in range(letters)]
        for start in range(0, len(pending), 500):
            await asyncio.gather(*pending[start : start + 500])
        for message in _journal(dice):
            await channel.default_exchange.publish(message, f"{prefix}.journal")


def _letter(dice: random.Random, number: int, letters: int) -> aio_pika.Message:
    reason, error, platform, _ = dice.choices(CAUSES, [cause[3] for cause in CAUSES])[0]
    example, id_field = (MESSENGER, "pageId") if platform == "messenger" else (LINE, "channelId")
    attributes = {**example["ottPlatformAttributes"], id_field: str(1_732_555_047_000_000 + number)}
    died = datetime.now(UTC) - timedelta(seconds=60 + 7000 * (1 - number / letters))
    headers: dict[str, Any] = {
        "x-ott-reason": reason,
        "x-ott-error": error,
        "x-ott-attempts": 6 if reason == "exhausted" else 1,
        "x-ott-received-at": (died - timedelta(seconds=4)).isoformat(),
        "x-ott-dead-at": died.isoformat(),
    }
    body = json.dumps({**example, "ottPlatformAttributes": attributes}).encode()
    return aio_pika.Message(body, message_id=f"{dice.getrandbits(64):016x}", headers=headers, delivery_mode=2)


def _journal(dice: random.Random) -> AsyncIterator[aio_pika.Message] | Any:
    now = datetime.now(UTC)
    for minute in range(59, -1, -1):
        lines = []
        busy = 1.6 if 18 < minute < 34 else 1.0
        for _ in range(round(dice.gauss(42, 7) * busy)):
            status = dice.choices(("registered", "rejected", "failed", "superseded"), (94, 3, 2, 1))[0]
            if 40 <= minute <= 43 and dice.random() < 0.5:
                status = "failed"
            completed = now - timedelta(minutes=minute, seconds=dice.uniform(0, 20))
            received = completed - timedelta(seconds=dice.lognormvariate(-2.2, 0.7))
            lines.append(
                json.dumps(
                    {
                        "id": f"{dice.getrandbits(64):016x}",
                        "status": status,
                        "reason": {"rejected": "rejected", "failed": "exhausted"}.get(status),
                        "accountId": None,
                        "ottPlatformName": "messenger",
                        "resourceId": str(1_732_555_047_000_000 + dice.randrange(10_000)),
                        "httpStatus": 201,
                        "errorcode": None,
                        "attempts": 1,
                        "receivedAt": received.isoformat(),
                        "completedAt": completed.isoformat(),
                        "supersededBy": "4f1c2ab37d90e655" if status == "superseded" else None,
                    }
                )
            )
        if lines:
            yield aio_pika.Message("\n".join(lines).encode(), delivery_mode=2)
