"""Dramatiq: threads for a task that waits, confirmed publishing, one pool of HTTP connections. Without the
middleware that costs something for each message and is not needed here (retries, limits of time and age).
`dramatiq_app.py message` prints the message that it sends."""

import base64
import json
import os
import sys

import dramatiq
import pika
import urllib3
from dramatiq.brokers.rabbitmq import RabbitmqBroker

URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}


class QuorumBroker(RabbitmqBroker):
    """Takes the queue as it is: a quorum queue."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, str]:
        return {"x-queue-type": "quorum"}

    def _declare_dq_queue(self, queue_name: str) -> None:
        """Nothing is delayed here."""

    def _declare_xq_queue(self, queue_name: str) -> None:
        """Nothing is dead-lettered here."""


broker = QuorumBroker(url=os.environ["BENCH_AMQP_URL"], confirm_delivery=True, middleware=[])
dramatiq.set_broker(broker)
pool = urllib3.PoolManager(maxsize=int(os.environ["BENCH_PREFETCH"]), retries=False)


@dramatiq.actor(queue_name=os.environ["BENCH_QUEUE"])
def register(body: str, reply_to: str, correlation_id: str) -> None:
    status = pool.request("POST", URL, body=body.encode(), headers=HEADERS, timeout=30).status
    broker.channel.basic_publish(
        exchange="",
        routing_key=reply_to,
        body=json.dumps({"requestId": correlation_id, "httpStatus": status}).encode(),
        properties=pika.BasicProperties(
            content_type="application/json", correlation_id=correlation_id, delivery_mode=2
        ),
    )


if __name__ == "__main__" and sys.argv[1:] == ["message"]:
    made = register.message(sys.stdin.read(), os.environ["BENCH_REPLIES"], "correlation").encode()
    print(json.dumps({"body": base64.b64encode(made).decode(), "properties": {}}))
