"""The contenders as the benchmark sees them: a command, and the messages that it takes."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pamqp import commands

from tests.benchmarks.broker import Message
from tests.benchmarks.environment import Environment

HERE = Path(__file__).parent / "contenders"


@dataclass(frozen=True)
class Contender:
    """`command` runs it. A framework with an envelope of its own has a `template`: the program that
    prints, for a request's body on standard input, the message that the framework would send."""

    name: str
    command: Callable[[Environment], list[str]]
    template: str | None = None

    @property
    def is_ours(self) -> bool:
        return self.name == OURS.name


def _python(program: str) -> Callable[[Environment], list[str]]:
    return lambda environment: [str(environment.python), str(HERE / program)]


OURS = Contender("ott-worker", lambda _: [sys.executable, "-m", "worker", "run"])


def watched(file: Path) -> Contender:
    """Our worker, which writes to `file` where the time of its deliveries went (slots.py)."""
    return replace(OURS, command=lambda _: [sys.executable, "-m", "tests.benchmarks.slots", str(file)])


AIO_PIKA = Contender("aio-pika + aiohttp", _python("aio_pika_loop.py"))
AIORMQ = Contender("aiormq + aiohttp", _python("aiormq_loop.py"))
FASTSTREAM = Contender("FastStream", _python("faststream_app.py"))
TASKIQ = Contender(
    "Taskiq",
    lambda e: [
        str(e.bin / "taskiq"),
        "worker",
        "taskiq_app:broker",
        *("--app-dir", str(HERE), "--workers", "1", "--max-async-tasks", "200", "--no-parse"),
        *("--log-level", "WARNING", "--ack-type", "when_executed"),
    ],
    template="taskiq_app.py",
)
DRAMATIQ = Contender(
    "Dramatiq",
    lambda e: [
        str(e.bin / "dramatiq"),
        "dramatiq_app",
        *("--path", str(HERE), "--processes", "1", "--threads", "32"),
    ],
    template="dramatiq_app.py",
)
CELERY = Contender(
    "Celery",
    lambda e: [
        str(e.bin / "celery"),
        *("--workdir", str(HERE), "-A", "celery_app", "worker", "--pool", "gevent", "-c", "200"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"),
    ],
    template="celery_app.py",
)
NODE = Contender("Node amqplib + undici", lambda e: [e.node, str(HERE / "node_loop.js")])

ALL = (OURS, AIO_PIKA, AIORMQ, FASTSTREAM, TASKIQ, DRAMATIQ, CELERY, NODE)


def messages(
    contender: Contender, environment: Environment, settings: dict[str, str], resources: int, size: int
) -> Callable[[int], Message]:
    """The `number`-th request as this contender wants it."""
    if contender.template is None:
        return lambda number: _request(number, resources, size, settings["BENCH_REPLIES"])
    made = subprocess.run(
        [str(environment.python), str(HERE / contender.template), "message"],
        input=body(0, size),
        env={**environment.variables, **settings},
        capture_output=True,
        check=True,
    )
    template = json.loads(made.stdout)
    same = Message(
        base64.b64decode(template["body"]),
        commands.Basic.Properties(delivery_mode=2, **template["properties"]),
    )
    return lambda _: same


def _request(number: int, resources: int, size: int, replies: str) -> Message:
    properties = commands.Basic.Properties(
        content_type="application/json",
        delivery_mode=2,
        message_id=f"request-{number}",
        correlation_id=f"correlation-{number}",
        reply_to=replies,
    )
    return Message(body(number % resources, size), properties)


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
