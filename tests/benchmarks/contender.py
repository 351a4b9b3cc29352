"""The contenders as the benchmark sees them: a command each, and the requests that they take.

Each is a program of its own, run until SIGTERM, that does the same work: take a request from BENCH_QUEUE
(with BENCH_PREFETCH in flight), POST its body to BENCH_URL, publish a persistent, confirmed reply to the
request's reply_to queue, acknowledge. Broker: BENCH_AMQP_URL.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import aio_pika

from tests.rig import messenger


@dataclass(frozen=True)
class Contender:
    """A program that does the work; `command` runs it."""

    name: str
    command: list[str]


OURS = Contender("ott-worker", [sys.executable, "-m", "worker", "run"])
LOOP = Contender("aio-pika + aiohttp", [sys.executable, str(Path(__file__).parent / "aio_pika_loop.py")])
ALL = (OURS, LOOP)


def request(number: int, resources: int, size: int, replies: str) -> aio_pika.Message:
    """The `number`-th request, of `size` bytes, for one of `resources`."""
    page = f"page-{number % resources}"
    padding = size - len(messenger(page, pageAccessToken=""))
    return aio_pika.Message(
        messenger(page, pageAccessToken="x" * max(1, padding)),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=f"request-{number}",
        correlation_id=f"correlation-{number}",
        reply_to=replies,
    )
