"""A hostile publisher beside an ordinary one: random field types, properties, `CC` and `BCC`, types, repeated
ids, large and deep bodies. The ordinary one sends ten requests a second, and each must be answered, 99 % of
them within a second (contract §2).

python -m tests.faults.hostile --messages 10000 --partitions 4
"""

import argparse
import asyncio
import logging
import os
import random
import struct
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from tests.faults.load import wait_for
from tests.faults.world import World
from tests.rig import DEFAULT_URL, Requester, messenger
from tests.support.fields import mixture, sized, table
from tests.support.markdown import print_head, print_row
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.amqp.publisher import Publisher
from worker.contract.words import BARRIER_TYPE, CONTROL_TYPE, REPLY_TYPE
from worker.errors import WorkerError
from worker.events import EventListener
from worker.settings import load_settings

SEED = 19
SOON = 1.0  # seconds
WANTED = 0.99  # of the replies, within SOON
INTERVAL = 0.1  # seconds between the ordinary publisher's requests
LARGE = 1 << 20  # bytes
LONGEST_WAIT = 60.0  # seconds for the last reply


class HostilePublisher:
    """Random messages, the same for the same seed."""

    def __init__(self, prefix: str, rng: random.Random) -> None:
        self._prefix = prefix
        self._rng = rng

    def message(self) -> Message:
        if self._rng.random() < 0.7:
            return Message("", f"{self._prefix}.requests", self._properties(), self._body(), external=True)
        key = self._rng.choice(["request", "replay"])
        return Message(self._prefix, key, self._properties(), self._body(), external=True)

    def _properties(self) -> Properties:
        rng = self._rng
        raw = {"delivery_mode": bytes([rng.choice([1, 2])])}
        headers = {self._name(): mixture(rng) for _ in range(rng.randrange(6))}
        if rng.random() < 0.1:
            keys = [b"S" + sized(key) for key in rng.sample([b"control", b"replay", b"request", b"none"], 2)]
            headers[rng.choice(["CC", "BCC"])] = b"A" + sized(b"".join(keys))
        if headers:
            raw["headers"] = table(headers)
        texts = {
            "content_type": [b"application/json", b"text/html", b"\xff"],
            "content_encoding": [b"utf-8", b"gzip"],
            "correlation_id": [rng.randbytes(20), b"x" * 255, b""],
            "message_id": [b"%d" % rng.randrange(20), b"1", rng.randbytes(30)],
            "reply_to": [
                f"{self._prefix}.{rng.choice(['requests', 'dead', 'requests.1', 'nowhere'])}".encode(),
                b"amq.rabbitmq.reply-to." + rng.randbytes(20).hex().encode(),
                rng.randbytes(20),
            ],
            "type": [BARRIER_TYPE.encode(), CONTROL_TYPE.encode(), REPLY_TYPE.encode(), b"\xff"],
            "app_id": [rng.randbytes(10)],
        }
        for name, values in texts.items():
            if rng.random() < 0.3:
                value = rng.choice(values)
                raw[name] = bytes([len(value)]) + value
        if rng.random() < 0.2:
            raw["priority"] = rng.randbytes(1)
        if rng.random() < 0.2:
            raw["timestamp"] = struct.pack(">Q", rng.choice([0, 2**31, 2**62]))
        return Properties(raw)

    def _name(self) -> str:
        ours = ["account-id", "as-of", "epoch", "came-by", "received-at", "replay-force", "reason", "letter"]
        return self._rng.choice([f"x-ott-{self._rng.choice(ours)}", f"h{self._rng.randrange(99)}"])

    def _body(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.01:
            return rng.choice(
                [
                    b'{"a": [' + b"[]," * (LARGE // 3 - 9) + b"[]]}",
                    b'{"a": ' + b"[" * (LARGE - 9) + b"}",
                    b'{"a": "' + rng.randbytes(8).hex().encode() * (LARGE // 16) + b'"}',
                    b" " * (LARGE + 1),
                ]
            )
        valid = messenger(str(rng.randrange(50)), rng.randbytes(5).hex())
        return rng.choice([valid, valid, valid[:-1], b"", b"{}", rng.randbytes(200), b"[" * 5_000])


class OrdinaryPublisher(Requester):
    """Sends requests at a steady rate, and notes how long each reply took."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__(url, prefix)
        self.sent_at: dict[str, float] = {}
        self.waited: dict[str, float] = {}

    async def _take(self, message):
        self.waited.setdefault(
            message.correlation_id, time.monotonic() - self.sent_at[message.correlation_id]
        )

    async def first(self) -> None:
        """Return when the workers, which have just started, have answered one request."""
        self.sent_at["first"] = time.monotonic()
        await self.publish(messenger("1"), correlation_id="first")
        await wait_for(lambda: self.waited, "the first reply", LONGEST_WAIT)
        self.sent_at.clear()
        self.waited.clear()

    async def run(self) -> None:
        """Until cancelled."""
        for number in range(10**9):
            name = uuid4().hex
            self.sent_at[name] = time.monotonic()
            await self.publish(messenger(str(10**9 + number)), correlation_id=name)
            await asyncio.sleep(max(0.0, INTERVAL - (time.monotonic() - self.sent_at[name])))


async def row(
    url: str, messages: int, rate: float, partitions: int, *, wanted: float = WANTED
) -> tuple[list[object], bool]:
    """Let both publish; what came of it, by COLUMNS, and whether it is as promised: no request without a
    reply, no worker ended, and the share `wanted` of the replies within SOON."""
    prefix = f"hostile.{uuid4().hex[:8]}"
    # The prefetch as shipped. Straight to the broker: the wiretap of the proxy cannot read such frames.
    environment = {"OTT_PARTITIONS": str(partitions), "OTT_PREFETCH": "200", "OTT_AMQP_URL": url}
    with tempfile.TemporaryDirectory(prefix="ott-hostile-") as folder:
        async with World(url, prefix, Path(folder), environment=environment) as world:
            await world.start(2)
            async with OrdinaryPublisher(url, prefix) as ordinary:
                await ordinary.first()
                running = asyncio.create_task(ordinary.run())
                await asyncio.sleep(5 * INTERVAL)
                refused = await _publish(url, HostilePublisher(prefix, random.Random(SEED)), messages, rate)
                running.cancel()
                deadline = time.monotonic() + LONGEST_WAIT
                while len(ordinary.waited) < len(ordinary.sent_at) - 1 and time.monotonic() < deadline:
                    await asyncio.sleep(INTERVAL)
            await world.workers.end()
            sent, waits = len(ordinary.sent_at), sorted(ordinary.waited.values())
            missing = max(0, sent - 1 - len(waits))  # the last one may have been cancelled
            soon = sum(wait <= SOON for wait in waits) / max(1, len(waits))
            at_99 = waits[int(len(waits) * 0.99)] if waits else 0.0
            ended = sum(w.process.returncode != 0 for w in world.workers.all)
            cells = [partitions, messages, refused, sent, missing, f"{100 * soon:.1f}", f"{at_99:.2f}"]
            cells += [f"{waits[-1] if waits else 0:.2f}", ended]
            return cells, not missing and soon >= wanted and not ended


async def _publish(url: str, publisher: HostilePublisher, messages: int, rate: float) -> int:
    """Publish so many; the number that RabbitMQ refused."""
    hostile = Publisher(load_settings(amqp_url=url), EventListener())
    hostile.start()
    began, sent = time.monotonic(), []
    for number in range(messages):
        sent.append(hostile.send(publisher.message()))
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    await hostile.stop()
    return sum(isinstance(outcome, WorkerError) for outcome in outcomes)


COLUMNS = (
    "partitions", "hostile messages", "refused by RabbitMQ", "requests", "without reply", "within 1 s %",
    "99th percentile s", "worst s", "workers that ended",
)  # fmt: skip


def main() -> int:
    """Run it; exit code 1 where it is not as promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0, help="hostile messages a second")
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL), help="the broker")
    arguments = parser.parse_args()
    logging.disable()
    print_head(*COLUMNS)
    all_well = True
    for partitions in arguments.partitions:
        cells, is_well = asyncio.run(row(arguments.url, arguments.messages, arguments.rate, partitions))
        print_row(*cells)
        all_well = all_well and is_well
    return int(not all_well)


if __name__ == "__main__":
    sys.exit(main())
