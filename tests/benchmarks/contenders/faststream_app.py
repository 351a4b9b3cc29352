"""FastStream: prefetch on the subscriber's channel, no AsyncAPI, no logging, an explicit persistent reply."""

import os

import aiohttp
import uvloop
from faststream import AckPolicy, FastStream, StreamMessage
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.annotations import RabbitMessage

URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}

broker = RabbitBroker(os.environ["BENCH_AMQP_URL"], logger=None)
app = FastStream(broker, logger=None)
session: aiohttp.ClientSession


@app.on_startup
async def open_session() -> None:
    global session  # noqa: PLW0603
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    )


async def undecoded(message: StreamMessage) -> bytes:
    return message.body


@broker.subscriber(
    RabbitQueue(os.environ["BENCH_QUEUE"], declare=False),
    channel=Channel(prefetch_count=int(os.environ["BENCH_PREFETCH"])),
    ack_policy=AckPolicy.MANUAL,
    decoder=undecoded,
    no_reply=True,
)
async def handle(body: bytes, message: RabbitMessage) -> None:
    async with session.post(URL, data=body, headers=HEADERS) as response:
        await response.read()
        status = response.status
    await broker.publish(
        {"requestId": message.message_id, "httpStatus": status},
        queue=message.reply_to,
        correlation_id=message.correlation_id,
        persist=True,
    )
    await message.ack()


if __name__ == "__main__":
    uvloop.run(app.run())
