"""The publisher: what is confirmed has arrived, and one bad message or peer holds up nobody else."""

import asyncio
import base64
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.proxy import Proxy
from tests.rig import Events, declare, messenger, until
from worker.amqp import confirm_channel
from worker.amqp import publisher as publisher_module
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties, build
from worker.amqp.publisher import DIRECT_REPLY_TO, Publisher, is_well_formed
from worker.broker.topology import Topology
from worker.errors import BrokerUnreachable
from worker.events import EventListener
from worker.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def declared(make_settings: Make) -> Settings:
    settings = make_settings()
    await declare(settings)
    return settings


async def test_a_broken_reply_address_disturbs_no_other_reply(rig, requester):
    hostile = base64.b64encode(b"\x83Xv\x00\x01@" + b"\0" * 12).decode()
    for address in ("AAAA.BBBB", "!!!.BBBB", f"{hostile}.BBBB"):
        await requester.publish(messenger(), reply_to=f"{DIRECT_REPLY_TO}{address}", correlation_id="broken")
    assert (await requester.ask(messenger()))["status"] == "registered"
    replies = [await requester.take("replies") for _ in range(3)]
    assert {reply.correlation_id for reply in replies} == {"broken"}
    # RabbitMQ 4 returns what looks like an address and is none; 3.10 ends the connection for it.
    assert {reply.headers["x-ott-reply-refused"] for reply in replies} <= {"not-allowed", "unroutable"}
    assert not rig.events.of("publisher_lost")
    # It is a label of a metric, for the worker's own queues alone.
    assert not rig.events.of("publish_turned_down")


async def test_a_connection_that_is_closed_with_nothing_under_way_is_not_opened_at_once(
    make_settings, monkeypatch
):
    """As where a user may open no more channels: nothing goes elsewhere, and the next one ends like it."""
    failed = asyncio.get_running_loop().create_future()

    async def once(_source: object, use: Callable[..., Any], _on_failure: object) -> None:
        lost = asyncio.get_running_loop().create_future()
        lost.set_result(None)
        try:
            await use(SimpleNamespace(lost=lost, is_open=False, was_closed_for_cause=True))
            failed.set_result(None)
        except BrokerUnreachable as error:
            failed.set_result(error)

    monkeypatch.setattr(publisher_module, "keep_connected", once)
    publisher = Publisher(make_settings(), EventListener())
    publisher.start()
    assert isinstance(await failed, BrokerUnreachable)
    await publisher.stop()


def test_a_malformed_reply_address_is_known_without_a_connection():
    """RabbitMQ 3.10 ends the connection for each: hundreds would hold up other direct replies for long."""
    pid, key = base64.b64encode(b"\x83Xw\x03a@b" + b"\0" * 12).decode(), "AAAA"
    assert is_well_formed(f"{DIRECT_REPLY_TO}{pid}.{key}")
    for broken in (
        "",
        "x",
        f"AAAA.{key}",
        f"!!!.{key}",
        f"{pid[:-4]}.{key}",
        f"{pid}.",
        f"{pid}.{key}.x",
        pid,
    ):
        assert not is_well_formed(DIRECT_REPLY_TO + broken)


async def test_thousands_of_messages_with_one_message_id_are_published_at_once(publisher, declared):
    names = Topology(declared.prefix)
    began = time.monotonic()
    properties = build(message_id="the same")
    sent = [publisher.send(Message(names.dead, "", properties, b"%d" % n)) for n in range(2000)]
    unroutable = publisher.send(Message("", "test.nowhere", properties, b"", external=True))
    await asyncio.gather(*sent)
    assert type((await asyncio.gather(unroutable, return_exceptions=True))[0]).__name__ == "Unroutable"
    assert time.monotonic() - began < 20  # seconds; 200 where each waits for the one before


async def test_a_letter_of_a_replay_is_not_lost_where_its_queue_is_missing(rig):
    """Two letters with one message id were replayed at once, and one of them still has the header by which
    the publisher told them apart."""
    await declare(rig.settings())
    requester = await rig.start(declare=False)
    await requester.channel.queue_delete(f"{requester.prefix}.dead")
    earlier = {confirm_channel.PUBLISH_HEADER: "earlier"}
    await requester.publish(b"", key="replay", message_id="one", headers=earlier)
    await until(lambda: rig.events.of("publish_turned_down"), "the return")
    await declare(rig.settings())
    assert (await requester.take("dead")).message_id == "one"


async def test_a_peer_that_swallows_everything_is_left_also_without_heartbeats(declared, events, monkeypatch):
    monkeypatch.setattr(confirm_channel, "CONFIRM_TIMEOUT", 1.5)
    async with Proxy.to(declared.amqp_url.get_secret_value()) as proxy:
        url = type(declared.amqp_url)(f"{proxy.url}?heartbeat=0")
        settings = declared.model_copy(update={"amqp_url": url})
        publisher = Publisher(settings, events)
        publisher.start()
        await until(lambda: publisher.ready, "the publisher")
        proxy.black_hole()
        sent = publisher.send(Message("", f"{declared.prefix}.replies", build(), b"x"))
        await until(lambda: events.of("publisher_lost"), "the loss")
        proxy.heal()
        async with asyncio.timeout(20):
            await sent
        await publisher.stop()


async def test_a_stream_that_confirms_twice_too_late_gets_a_new_channel(declared, events, monkeypatch):
    """On 4.3 a channel may go unconfirmed after a network partition, while a new one is confirmed."""
    monkeypatch.setattr(confirm_channel, "STREAM_CONFIRM_TIMEOUT", 0.1)
    journal = Topology(declared.prefix).journal
    publisher = Publisher(declared, events, [journal])
    publisher.start()
    channel = publisher._streams[journal]
    await until(lambda: channel.is_open, "the channel")
    deaf = channel._interceptor
    assert deaf is not None
    deaf.on_confirm = lambda *_: None
    async with asyncio.timeout(10):
        await publisher.send(Message("", journal, build(), b"{}"))
    assert channel._interceptor is not deaf
    assert not events.of("publisher_lost")
    await publisher.stop()


def test_headers_that_fill_a_frame_are_trimmed_in_one_pass():
    entries = {f"h{n:05d}": n for n in range(8_000)}
    properties = Properties.parse(build(headers={**entries, "x-ott-request-id": "id"}).encoded())
    began = time.process_time()
    trimmed = Properties.parse(properties.without_large_headers(100_000).encoded())
    assert time.process_time() - began < 1  # second; 4 s and more where each header is trimmed by itself
    assert 90_000 < len(trimmed.encoded()) <= 100_000
    assert trimmed.header("x-ott-request-id") == "id"


async def test_what_a_stream_confirms_does_not_depend_on_what_goes_elsewhere(declared):
    """Each stream has a channel that carries nothing else; the reason stands at Publisher."""
    names = Topology(declared.prefix)
    publisher = Publisher(declared, EventListener(), [names.journal, names.control])
    publisher.start()
    targets = [names.journal, names.replies, names.control, names.replies, names.journal]
    await asyncio.gather(*(publisher.send(Message("", target, build(), b"{}")) for target in targets))
    assert {name: channel._ledger.tag for name, channel in publisher._streams.items()} == {
        names.journal: 2,
        names.control: 1,
    }
    await publisher.stop()
