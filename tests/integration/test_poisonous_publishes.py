"""A message for which RabbitMQ closes the connection that it is published on stops no other (contract §2).

The table of field types is made wrong, as it was in release 1.1.0: what is written from such a header is
malformed, and RabbitMQ ends the connection for it."""

import asyncio
import json
import struct
import time

import pytest

from tests.rig import messenger
from worker.amqp import properties
from worker.amqp.confirm_channel import LoneChannel, Poisonous, publish_isolated
from worker.amqp.connection import Connection, connect
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties, short_string
from worker.errors import BrokerUnreachable, PublishRefused, Unroutable, WorkerError
from worker.events import EventListener

SOON = 5.0  # seconds; less than a confirm that does not come costs
HEADERS = short_string("a") + b"u\0\1" + short_string("b") + b"S\0\0\0\3abc"
POISON = {"headers": struct.pack(">I", len(HEADERS)) + HEADERS}
BROKEN = {"headers": struct.pack(">I", 9) + short_string("a") + b"S\0\0\0\5abc"}  # RabbitMQ cannot read it


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("is_valid", [False, True])
async def test_others_are_answered_at_once_and_it_is_settled_in_a_reduced_form(
    rig, publisher, monkeypatch, partitions, is_valid
):
    monkeypatch.setitem(properties._FIXED_SIZE, ord("u"), 4)
    requester = await rig.start(partitions=partitions)
    assert (await requester.ask(messenger()))["status"] == "registered"
    poison = messenger("4711") if is_valid else b'{"poison": true}'
    wanted = [await requester.publish(messenger(f"1{number}")) for number in range(20)]
    await publisher.send(Message("", f"{requester.prefix}.requests", Properties(dict(POISON)), poison, True))
    began = time.monotonic()
    wanted += [await requester.publish(messenger(f"2{number}")) for number in range(20)]
    for each in wanted:
        await requester.reply(each)
    took = time.monotonic() - began
    reply = await requester.take("replies")
    assert json.loads(reply.body)["status"] == ("registered" if is_valid else "rejected")
    if not is_valid:
        letter = await requester.take("dead")
        assert letter.body == poison
        assert letter.headers["x-ott-reduced"] is True
        assert letter.headers["x-ott-reason"] == "invalid"
        assert not {"a", "b"} & letter.headers.keys()
    assert took < SOON


async def test_the_one_to_blame_is_found_among_hundreds(publisher, prefix):
    queue = f"{prefix}.replies"
    good = [publisher.send(Message("", queue, Properties(), b"%d" % n)) for n in range(300)]
    bad = [publisher.send(Message("", queue, Properties(dict(BROKEN)), b"bad")) for _ in range(3)]
    good += [publisher.send(Message("", queue, Properties(), b"%d" % n)) for n in range(300)]
    async with asyncio.timeout(20):
        await asyncio.gather(*good)
        await asyncio.gather(*bad)
    assert not publisher.waiting


async def test_one_for_a_foreign_queue_is_refused(publisher, prefix):
    sent = publisher.send(Message("", f"{prefix}.replies", Properties(dict(BROKEN)), b"bad", external=True))
    with pytest.raises(PublishRefused):
        async with asyncio.timeout(20):
            await sent


async def test_published_to_no_queue_it_is_found_too(make_settings):
    outcomes: dict[Message, WorkerError | None] = {}
    good = [Message("", "test.nowhere", Properties(), b"") for _ in range(50)]
    bad = Message("", "test.nowhere", Properties(dict(BROKEN)), b"")
    settings = make_settings()
    await publish_isolated(lambda: connect(settings, "test"), [*good, bad], outcomes.__setitem__)
    assert isinstance(outcomes.pop(bad), Poisonous)
    assert set(outcomes) == set(good)
    assert all(isinstance(outcome, Unroutable) for outcome in outcomes.values())


async def test_nobody_waits_for_a_lone_channel_that_a_defect_has_ended(connection, monkeypatch):
    async def source() -> Connection:
        return connection

    async def fail(**_: object) -> None:
        raise LookupError

    monkeypatch.setattr(connection, "raw_channel", fail)
    channel = await LoneChannel.open("test", EventListener(), source)
    sent = channel.send(Message("", "test.nowhere", Properties(), b"", external=True))
    with pytest.raises(BrokerUnreachable):
        async with asyncio.timeout(20):
            await sent
    await channel.close()
