"""The loop that a good engineer writes in an afternoon: aio-pika and aiohttp, with the worker's variables."""

import asyncio
import json
import os

import aio_pika
import aiohttp
import uvloop

URL = f"{os.environ['OTT_MC_REST_URL']}/ott/v1/registration"
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}


async def main() -> None:
    connection = await aio_pika.connect_robust(os.environ["OTT_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=int(os.environ["OTT_PREFETCH"]))
    queue = await channel.get_queue(f"{os.environ['OTT_PREFIX']}.requests")
    replies = (await connection.channel(publisher_confirms=True)).default_exchange
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    ) as session:

        async def handle(request: aio_pika.abc.AbstractIncomingMessage) -> None:
            async with session.post(URL, data=request.body, headers=HEADERS) as response:
                await response.read()
                status = response.status
            reply = aio_pika.Message(
                json.dumps({"requestId": request.message_id, "httpStatus": status}).encode(),
                content_type="application/json",
                correlation_id=request.correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await replies.publish(reply, routing_key=request.reply_to or "")
            await request.ack()

        await queue.consume(handle)
        await asyncio.Event().wait()


uvloop.run(main())
