"""Taskiq on taskiq-aio-pika: a quorum queue, acknowledged when the task has ended, no result backend. Its
process manager installs uvloop by itself. `taskiq_app.py message` prints the message that it sends."""

import asyncio
import base64
import json
import os
import sys

import aio_pika
import aiohttp
from taskiq import TaskiqEvents, TaskiqState
from taskiq.kicker import AsyncKicker
from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.queue import Queue

URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}

broker = AioPikaBroker(
    os.environ["BENCH_AMQP_URL"],
    qos=int(os.environ["BENCH_PREFETCH"]),
    task_queues=[Queue(name=os.environ["BENCH_QUEUE"], declare=False)],
    dead_letter_queue=Queue(name=os.environ["BENCH_QUEUE"], declare=False),
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(state: TaskiqState) -> None:
    state.session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    )
    connection = await aio_pika.connect_robust(os.environ["BENCH_AMQP_URL"])
    state.replies = (await connection.channel(publisher_confirms=True)).default_exchange
    state.connection = connection


@broker.task(task_name="register")
async def register(body: str, reply_to: str, correlation_id: str) -> None:
    async with broker.state.session.post(URL, data=body.encode(), headers=HEADERS) as response:
        await response.read()
        status = response.status
    reply = aio_pika.Message(
        json.dumps({"requestId": correlation_id, "httpStatus": status}).encode(),
        content_type="application/json",
        correlation_id=correlation_id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await broker.state.replies.publish(reply, routing_key=reply_to)


async def message(body: str) -> None:
    kicker: AsyncKicker = register.kicker()
    task = kicker._prepare_message(body, os.environ["BENCH_REPLIES"], "correlation")
    made = broker.formatter.dumps(task)
    print(json.dumps({"body": base64.b64encode(made.message).decode(), "properties": {}}))


if __name__ == "__main__":
    asyncio.run(message(sys.stdin.read()))
