"""Properties that have ended other clients: the request is answered, and nothing crashes, blocks or leaks.
Bodies of this kind: tests/unit/test_hostile_bodies.py."""

import struct

import pytest

from tests.rig import messenger, until
from tests.support.fields import sized, table
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties
from worker.amqp.queue import QueueBrowser


def header(name: str, value: bytes) -> dict[str, bytes]:
    return {"headers": table({name: value})}


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


DEEP = b"".join(b"A" + struct.pack(">I", 5 * (5_000 - i - 1)) for i in range(5_000))
HOSTILE = {
    "a correlation id that is not UTF-8": {"correlation_id": text(b"\xff\xfe")},
    "a message id that is not UTF-8": {"message_id": text(b"\x80id")},
    "a reply_to that is not UTF-8": {"reply_to": text(b"\xc3(")},
    "a timestamp beyond all years": {"timestamp": b"\xff" * 8},
    "a header name that is not UTF-8": {"headers": sized(text(b"\xff") + b"t\x01")},
    "a header time beyond all years": header("t", b"T" + b"\xff" * 8),
    "a decimal of scale 255": header("d", b"D\xff\x7f\xff\xff\xff"),
    "headers 5,000 levels deep": header("a", DEEP),
    # Each of these has stopped somebody's consumer:
    "a timestamp in milliseconds": {"timestamp": struct.pack(">Q", 1_694_787_600_000)},
    "a header that is not UTF-8": header("foo", b"S" + sized(b"\x8d")),
    "a header time before 1970": header("t", b"T" + struct.pack(">q", -14_256_000)),
    "an x-death that is text": header("x-death", b"S" + sized(b"[{queue=some}]")),
    "an x-death of lists": header("x-death", b"A" + sized(b"A" + sized(b"S" + sized(b"expired")))),
    "headers that fill a whole frame": header("a", b"S" + sized(b"x" * 130_900)),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_property_that_would_end_other_clients_does_no_harm(requester, publisher, connection, name):
    given, requests = Properties(HOSTILE[name]), f"{requester.prefix}.requests"
    for body in (messenger("raw"), b"broken"):
        await publisher.send(Message("", requests, given, body, external=True))
    assert (await requester.ask(messenger()))["status"] == "registered"
    await until(lambda: requester.depth("dead"), "the dead letter")
    async with QueueBrowser(connection, f"{requester.prefix}.dead") as browser:
        (letter,) = [delivery async for delivery in browser.look(1)]
    assert letter.body == b"broken"
    kept = HOSTILE[name].keys() - {"headers"}
    assert [letter.properties.raw(each) for each in kept] == [given.raw(each) for each in kept]
