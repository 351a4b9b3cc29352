"""A message goes in, a reply comes out (contract §2, §4, §5)."""

import json

import aio_pika
import pytest

from tests.rig import LINE, MESSENGER, journal_records, messenger, until
from worker.amqp import consumer
from worker.contract.settlement import Resource


@pytest.mark.parametrize(
    ("document", "resource"),
    [(MESSENGER, "1732555047025799"), (LINE, "23493453984234345")],
    ids=["messenger", "line"],
)
async def test_an_example_of_the_api_is_registered_as_printed(rig, requester, document, resource):
    body = json.dumps(document, indent=4).encode()
    correlation_id = await requester.publish(body, message_id="request-1")
    reply, message = await requester.reply(correlation_id), await requester.reply_message(correlation_id)
    assert reply == {
        "status": "registered",
        "requestId": "request-1",
        "ottPlatformName": document["ottPlatformName"],
        "resourceId": resource,
        "httpStatus": 201,
        "attempts": 1,
        "receivedAt": reply["receivedAt"],
        "completedAt": reply["completedAt"],
    }
    assert reply["receivedAt"] <= reply["completedAt"]
    assert message.content_type == "application/json"
    assert message.type == "ott.registration.reply"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.message_id not in (None, "request-1")
    assert Resource(None, document["ottPlatformName"], resource) in rig.sandbox.registrations


async def test_the_body_is_forwarded_unchanged_with_unknown_fields_and_flags_as_they_came(rig, requester):
    body = messenger(isActive=1, extra={"nested": [1, None]}).replace(b"1,", b"1 ,")
    await requester.ask(body)
    held = rig.sandbox.registrations[Resource(None, "messenger", "1732555047025799")].body
    assert held["ottPlatformAttributes"]["isActive"] == 1
    assert held["ottPlatformAttributes"]["extra"] == {"nested": [1, None]}


async def test_without_reply_to_the_reply_goes_to_the_replies_queue(requester):
    await requester.publish(messenger(), reply_to="", correlation_id="c", message_id="m")
    message = await requester.take("replies")
    assert message.correlation_id == "c"
    assert "x-ott-reply-refused" not in message.headers


async def test_without_correlation_id_the_request_id_stands_in(requester):
    await requester.publish(messenger(), correlation_id="", message_id="only-an-id")
    assert (await requester.reply("only-an-id"))["requestId"] == "only-an-id"


async def test_an_unroutable_reply_to_is_told_and_not_followed(requester):
    await requester.publish(messenger(), reply_to="no.such.queue")
    assert (await requester.take("replies")).headers["x-ott-reply-refused"] == "unroutable"


async def test_a_reply_to_that_is_not_allowed_is_told_and_not_followed(requester):
    own = [f"{requester.prefix}.{name}" for name in ("requests", "dead", "journal", "replies", "requests.3")]
    for reply_to in (*own, "amq.topic", "amq.rabbitmq.trace"):
        await requester.publish(messenger(), reply_to=reply_to)
        assert (await requester.take("replies")).headers["x-ott-reply-refused"] == "not-allowed", reply_to


async def test_direct_reply_to_works(rig, requester):
    connection = await aio_pika.connect(str(rig.settings().amqp_url.get_secret_value()))
    async with connection:
        channel = await connection.channel()
        pseudo = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        replies: list[bytes] = []

        async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            replies.append(message.body)

        await pseudo.consume(take, no_ack=True)
        message = aio_pika.Message(messenger(), reply_to="amq.rabbitmq.reply-to")
        await channel.default_exchange.publish(message, f"{requester.prefix}.requests")
        await until(lambda: replies, "the direct reply")
    assert json.loads(replies[0])["status"] == "registered"


async def test_a_dead_letter_keeps_body_properties_and_headers_and_says_why(requester):
    await requester.publish(
        b"{broken",
        message_id="the-id",
        correlation_id="the-correlation",
        headers={"tenant": "blue", "n": 7, "CC": ["elsewhere"]},
        app_id="upstream",
        priority=3,
    )
    letter = await requester.take("dead")
    assert letter.body == b"{broken"
    assert (letter.message_id, letter.correlation_id) == ("the-id", "the-correlation")
    assert (letter.app_id, letter.priority) == ("upstream", 3)
    assert letter.reply_to == requester.queue.name
    assert letter.headers["tenant"] == "blue"
    assert letter.headers["n"] == 7
    assert "CC" not in letter.headers
    assert letter.headers["x-ott-reason"] == "invalid"
    assert letter.headers["x-ott-error"].startswith("10004 ")
    assert letter.headers["x-ott-attempts"] == 0
    reply = await requester.reply("the-correlation")
    assert letter.headers["x-ott-received-at"] == reply["receivedAt"]
    assert letter.headers["x-ott-dead-at"] == reply["completedAt"]


async def test_an_oversize_request_is_answered_and_dead_lettered_by_the_broker(rig):
    requester = await rig.start(max_body_bytes=2000)
    body = messenger(padding="x" * 2000)
    reply = await requester.ask(body, message_id="large")
    assert (reply["status"], reply["errorcode"], reply["requestId"]) == ("rejected", 10004, "large")
    assert reply["message"] == "The body is larger than 2000 bytes; send a smaller one."
    letter = await requester.take("dead")
    assert letter.body == body
    assert (letter.message_id, letter.routing_key) == ("large", f"{requester.prefix}.requests")
    assert letter.headers["x-death"][0]["reason"] == "rejected"
    assert "x-ott-reason" not in letter.headers
    assert await requester.depth("dead") == 0
    (record,) = await journal_records(requester, 1)
    assert (record["id"], record["status"], record["reason"]) == ("large", "rejected", "oversize")


async def test_what_is_held_in_memory_is_bounded_and_the_order_stays(rig, monkeypatch):
    limit = 200_000  # bytes
    monkeypatch.setattr(consumer, "HELD_BYTES", limit)
    requester = await rig.requester_for(rig.settings())
    service = await rig.start_worker(rig.settings(prefetch=100))
    names = [f"{number:03d}" for number in range(60)]
    for name in names:
        await requester.publish(messenger(f"1{int(name) % 7}", name, padding="x" * 20_000))
    held: list[int] = []

    async def are_answered() -> bool:
        subscription = service.intake.subscription
        held.append(0 if subscription is None else subscription.held_bytes)
        return len(requester.order) >= len(names)

    await until(are_answered, "all replies")
    assert 0 < max(held) <= limit
    for page in range(7):
        assert [name for name in rig.names_called if int(name) % 7 == page] == names[page::7]


async def test_a_request_whose_dead_letter_is_not_confirmed_is_not_acknowledged(rig, requester):
    await rig.stop_first()
    name, limits = f"{requester.prefix}.dead", {"x-max-length": 0, "x-overflow": "reject-publish"}
    await requester.channel.queue_delete(name)
    full = await requester.channel.declare_queue(name, durable=True, arguments=limits)
    await full.bind(name)
    worker = await rig.start_worker(rig.settings(declare=False, shutdown_grace=1))
    assert (await requester.ask(b"{}"))["status"] == "rejected"
    await rig.stop_worker(worker)
    assert await requester.depth("requests") == 1
