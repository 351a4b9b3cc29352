"""The contenders as the benchmark sees them: a command, and the requests that it takes."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pamqp import commands

from tests.benchmarks.broker import Message
from tests.benchmarks.environment import Environment

HERE = Path(__file__).parent / "contenders"


@dataclass(frozen=True)
class Contender:
    """A program that does the work; `command` runs it."""

    name: str
    command: Callable[[Environment], list[str]]

    @property
    def is_ours(self) -> bool:
        return self.name == OURS.name


OURS = Contender("ott-worker", lambda _: [sys.executable, "-m", "worker", "run"])
ALL = (
    OURS,
    Contender("aio-pika + aiohttp", lambda e: [str(e.python), str(HERE / "aio_pika_loop.py")]),
    Contender("FastStream", lambda e: [str(e.python), str(HERE / "faststream_app.py")]),
)


def requests(resources: int, size: int, replies: str) -> Callable[[int], Message]:
    """The `number`-th request, of `size` bytes, for one of `resources`."""

    def make(number: int) -> Message:
        properties = commands.Basic.Properties(
            content_type="application/json",
            delivery_mode=2,
            message_id=f"request-{number}",
            correlation_id=f"correlation-{number}",
            reply_to=replies,
        )
        return Message(body(number % resources, size), properties)

    return make


def body(resource: int, size: int) -> bytes:
    """A registration of `size` bytes."""
    document = {
        "ottPlatformName": "messenger",
        "ottPlatformAttributes": {
            "applicationId": "1234567890",
            "applicationSecret": "not-a-secret-at-all",
            "pageId": f"page-{resource}",
            "pageName": "Benchmark",
            "pageAccessToken": "",
            "endpointUrl": "https://graph.facebook.com/v2.10/me/messages",
            "callbackVerifyToken": "verify",
            "isActive": True,
        },
    }
    document["ottPlatformAttributes"]["pageAccessToken"] = "x" * max(1, size - len(json.dumps(document)))
    return json.dumps(document).encode()
