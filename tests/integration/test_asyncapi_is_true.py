"""What travels on a real broker follows the AsyncAPI document, and its objects are there."""

import json
from typing import Any

import aio_pika
from jsonschema import Draft7Validator

from tests.rig import Requester, Rig, messenger, until
from worker.contract.asyncapi import asyncapi


def validator(document: dict[str, Any], message: str, part: str = "payload") -> Draft7Validator:
    schema = document["components"]["messages"][message][part]
    return Draft7Validator({**schema, "components": document["components"]})


async def journal_records(requester: Requester, count: int) -> list[dict[str, Any]]:
    """The first records of the journal."""
    records: list[dict[str, Any]] = []

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        assert (message.content_type, message.type) == ("application/x-ndjson", "ott.registration.journal")
        records.extend(json.loads(line) for line in message.body.splitlines())
        await message.ack()

    await requester.channel.set_qos(10)
    queue = await requester.channel.get_queue(f"{requester.prefix}.journal", ensure=False)
    tag = await queue.consume(take, arguments={"x-stream-offset": "first"})
    await until(lambda: len(records) >= count, "the journal's records")
    await queue.cancel(tag)
    return records


async def test_replies_dead_letters_and_journal_records_follow_the_document(rig: Rig) -> None:
    requester = await rig.start()
    document = asyncapi(requester.prefix, "1.0.0")

    validator(document, "result").validate(await requester.ask(messenger()))
    validator(document, "errorEnvelope").validate(await requester.ask(b"{}"))
    dead = await requester.take("dead")
    assert set(document["components"]["schemas"]["DeadLetterHeaders"]["properties"]) <= set(dead.headers)
    headers = {name: value for name, value in dead.headers.items() if isinstance(value, str | int)}
    validator(document, "deadLetter", "headers").validate(headers)
    for record in await journal_records(requester, 2):
        validator(document, "journal").validate(record)
        described = document["components"]["schemas"]["JournalRecord"]["properties"]
        assert set(record) == set(described)


async def test_every_queue_and_exchange_of_the_document_is_declared(rig: Rig) -> None:
    requester = await rig.start()
    for channel in asyncapi(requester.prefix, "1.0.0")["channels"].values():
        binding = channel.get("bindings", {}).get("amqp", {})
        if binding.get("is") == "queue":
            assert await requester.depth(binding["queue"]["name"].removeprefix(f"{requester.prefix}.")) >= 0
        elif binding:
            exchange = await requester.channel.get_exchange(binding["exchange"]["name"])
            message = aio_pika.Message(messenger(), reply_to=requester.queue.name, correlation_id="entry")
            await exchange.publish(message, channel["address"])
    assert (await requester.reply("entry"))["status"] == "registered"
