"""Celery: the gevent pool for tasks that wait, late acknowledgement, no results, no events, confirmed
publishing. `celery_app.py message` prints the message that it sends."""

import sys

if "worker" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import base64
import json
import os

import urllib3
from celery import Celery
from kombu import Queue, pools

URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}
PREFETCH = int(os.environ["BENCH_PREFETCH"])

app = Celery("benchmark", broker=os.environ["BENCH_AMQP_URL"])
app.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    broker_pool_limit=PREFETCH,
    broker_native_delayed_delivery_enabled=False,
    task_acks_late=True,
    task_ignore_result=True,
    task_default_queue=os.environ["BENCH_QUEUE"],
    task_queues=[
        Queue(os.environ["BENCH_QUEUE"], queue_arguments={"x-queue-type": "quorum"}, no_declare=True)
    ],
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
)
pool = urllib3.PoolManager(maxsize=PREFETCH, retries=False)


@app.task(name="register")
def register(body: str, reply_to: str, correlation_id: str) -> None:
    status = pool.request("POST", URL, body=body.encode(), headers=HEADERS, timeout=30).status
    with pools.producers[app.connection_for_write()].acquire(block=True) as producer:
        producer.publish(
            {"requestId": correlation_id, "httpStatus": status},
            routing_key=reply_to,
            correlation_id=correlation_id,
            delivery_mode=2,
            serializer="json",
            retry=False,
        )


if __name__ == "__main__":
    args = (sys.stdin.read(), os.environ["BENCH_REPLIES"], "correlation")
    headers, properties, body, _ = app.amqp.as_task_v2("benchmark-task", "register", args)
    headers = {name: value for name, value in headers.items() if isinstance(value, str | int)}
    print(
        json.dumps(
            {
                "body": base64.b64encode(json.dumps(body).encode()).decode(),
                "properties": {
                    "content_type": "application/json",
                    "content_encoding": "utf-8",
                    "correlation_id": properties["correlation_id"],
                    "headers": headers,
                },
            }
        )
    )
