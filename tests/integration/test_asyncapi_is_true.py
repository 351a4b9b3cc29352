"""What travels on a real broker follows the AsyncAPI document, and its objects are there."""

from typing import Any

import aio_pika
from jsonschema import Draft7Validator

from tests.rig import Rig, journal_records, messenger
from worker.contract.schema import asyncapi


def validator(document: dict[str, Any], message: str, part: str = "payload") -> Draft7Validator:
    schema = document["components"]["messages"][message][part]
    return Draft7Validator({**schema, "components": document["components"]})


async def test_replies_dead_letters_and_journal_records_follow_the_document(rig: Rig) -> None:
    requester = await rig.start()
    document = asyncapi(requester.prefix, "1.0.0")

    validator(document, "result").validate(await requester.ask(messenger()))
    dated = {"x-ott-as-of": "2026-11-23T13:00:00+01:00"}
    envelope = await requester.ask(b"{}", headers=dated)
    validator(document, "errorEnvelope").validate(envelope)
    assert envelope["asOf"] == "2026-11-23T12:00:00.000000Z"
    dead = await requester.take("dead")
    described = set(document["components"]["schemas"]["DeadLetterHeaders"]["properties"])
    assert described - {"x-ott-reduced"} <= set(dead.headers)
    headers = {name: value for name, value in dead.headers.items() if isinstance(value, str | int)}
    validator(document, "deadLetter", "headers").validate(headers)
    for record in await journal_records(requester, 2):
        validator(document, "journal").validate(record)
        described = document["components"]["schemas"]["JournalRecord"]["properties"]
        assert set(record) | {"asOf"} == set(described)
    assert (record["status"], record.get("asOf")) == ("rejected", envelope["asOf"])


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
