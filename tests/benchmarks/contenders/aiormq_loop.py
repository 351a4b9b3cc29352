"""The same loop one floor below: aiormq and aiohttp."""

import asyncio
import json
import os

import aiohttp
import aiormq
import uvloop

URL = os.environ["BENCH_URL"]
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer benchmark"}


async def main() -> None:
    connection = await aiormq.connect(os.environ["BENCH_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=False)
    await channel.basic_qos(prefetch_count=int(os.environ["BENCH_PREFETCH"]))
    replies = await connection.channel(publisher_confirms=True)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    ) as session:

        async def handle(request: aiormq.abc.DeliveredMessage) -> None:
            properties = request.header.properties
            async with session.post(URL, data=request.body, headers=HEADERS) as response:
                await response.read()
                status = response.status
            await replies.basic_publish(
                json.dumps({"requestId": properties.message_id, "httpStatus": status}).encode(),
                routing_key=properties.reply_to,
                properties=aiormq.spec.Basic.Properties(
                    content_type="application/json", correlation_id=properties.correlation_id, delivery_mode=2
                ),
            )
            await channel.basic_ack(request.delivery_tag)

        await channel.basic_consume(os.environ["BENCH_QUEUE"], handle)
        await asyncio.Event().wait()


uvloop.run(main())
