"""The answer table, row by row (contract §6)."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.rig import failing, messenger, until
from tests.sandbox_faults import Hang, Reset, Status
from tests.support.upstream import Handler, request, upstream

ONE_BROKER = "What Marketing Cloud answers, and what becomes of it, is no matter of RabbitMQ's version."


async def test_400_is_rejected_with_marketing_clouds_own_errors(rig, requester):
    body = (
        '{"message":"Please fix the following errors","errorcode":10006,"documentation":"",'
        '"%s":[{"message":"PageId is taken","errorcode":10005,"documentation":""}]}'
    )
    for name in ("validationErrors", "additionalErrors"):
        rig.sandbox.faults.add(failing(400, body=body % name, count=1))
        reply = await requester.ask(messenger())
        assert (reply["status"], reply["httpStatus"], reply["attempts"]) == ("rejected", 400, 1)
        assert reply["validationErrors"] == [
            {"message": "PageId is taken", "errorcode": 10005, "documentation": ""}
        ]
        letter = await requester.take("dead")
        assert letter.headers["x-ott-reason"] == "rejected"
        assert letter.headers["x-ott-error"] == "10006 Please fix the following errors: PageId is taken"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_a_passing_fault_is_retried(rig, requester, status):
    rig.sandbox.faults.add(failing(status, count=2))
    reply = await requester.ask(messenger())
    # A speed limit costs no attempt.
    assert (reply["status"], reply["attempts"]) == ("registered", 1 if status == 429 else 3)


@pytest.mark.parametrize(
    "fault",
    [
        Reset(path="registration", count=2),
        Reset(path="registration", count=2, applied=True),
        Hang(path="registration", count=2),
        Status(path="registration", count=2, status=307, location="/ott/v1/registration"),
        Status(path="registration", count=2, status=502, body="<" * 2_000_000),
    ],
    ids=["reset", "reset-after", "hang", "redirect", "garbage"],
)
async def test_a_call_that_gets_no_proper_answer_is_retried(rig, fault):
    requester = await rig.start(http_timeout=0.5)
    rig.sandbox.faults.add(fault)
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 3)
    assert {call.path for call in rig.sandbox.history.registration_calls} == {"/ott/v1/registration"}


async def test_spent_attempts_end_in_a_dead_letter_while_others_succeed(rig):
    requester = await rig.start(retry_attempts=3)
    rig.sandbox.faults.add(failing(500, resource_id="bad", message="Oops", errorcode=123))
    bad = await requester.publish(messenger("bad"))
    assert (await requester.ask(messenger("good")))["status"] == "registered"
    reply = await requester.reply(bad)
    assert (reply["status"], reply["httpStatus"], reply["attempts"]) == ("failed", 500, 3)
    assert (reply["message"], reply["errorcode"]) == ("Oops", 123)
    letter = await requester.take("dead")
    assert (letter.headers["x-ott-reason"], letter.headers["x-ott-attempts"]) == ("exhausted", 3)


async def test_a_spent_budget_ends_in_a_dead_letter(rig):
    requester = await rig.start(retry_attempts=1000, retry_budget=0.3, gate_after=10000)
    rig.sandbox.faults.add(failing(500, resource_id="bad"))
    reply = await requester.ask(messenger("bad"))
    assert reply["status"] == "failed"
    assert 1 < reply["attempts"] < 1000


@pytest.mark.parametrize("kind", ["seconds", "date", "body"])
async def test_a_retry_hint_is_honoured(rig, requester, kind):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    hints = {"seconds": {"retry_after": 1}, "date": {"retry_after": date}, "body": {"body_retry_after": 1}}
    rig.sandbox.faults.add(failing(429, errorcode=50100, count=1, **hints[kind]))
    started = time.monotonic()
    assert (await requester.ask(messenger()))["status"] == "registered"
    assert time.monotonic() - started >= 0.9


MANY_HEADERS = b"".join(b"X-Header-%d: value\r\n" % n for n in range(130))
REASONS = (
    '{"message": "Please fix the following errors", "errorcode": 10006, "validationErrors": '
    '[{"message": "PageName is invalid: \u20ac", "errorcode": 10005}]}'
)


def marketing_cloud(*, registration: bytes = b"", token: bytes = b"") -> Handler:
    """An upstream that gives tokens, and answers as the test says."""
    document = b'{"access_token": "t"}'
    good = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document)

    async def handle(reader, writer):
        while True:
            head, _ = await request(reader)
            writer.write((token or good) if b"/v2/token" in head else registration)

    return handle


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 201 Created\r\nContent-Encoding: br\r\nContent-Length: 4\r\n\r\n\x0b\x02\x80x",
        b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n" + MANY_HEADERS + b"\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\nnot JSON!",
        b"HTTP/1.1 201 Created\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 201 Created\r\nContent-Length: 31\r\n\r\n{"message": "OK","errorcode":0}',
    ],
    ids=["br", "many", "no-json", "empty-html", "no-error"],
)
async def test_a_whole_head_with_2xx_is_registered_whatever_its_body_and_headers(rig, answer):
    async with upstream(marketing_cloud(registration=answer)) as url:
        requester = await rig.start(mc_auth_url=url, mc_rest_url=url)
        for page in ("1", "2"):
            reply = await requester.ask(messenger(page))
            assert (reply["status"], reply["attempts"]) == ("registered", 1)
    assert not rig.events.closed


PAGES = [
    (200, "text/html", "We are back soon"),
    (403, "text/plain", "\n<!doctype html>"),
    (404, "", "<?xml ?>"),
]


@pytest.mark.parametrize(("status", "kind", "body"), PAGES)
async def test_a_page_of_another_server_for_all_closes_the_gate(rig, requester, status, kind, body):
    rig.sandbox.faults.add(failing(status, content_type=kind, body=body))
    asked = [await requester.publish(messenger(f"p{n}")) for n in range(10)]
    await until(lambda: rig.events.closed, "the gate to close")
    assert "web page" in rig.events.closed[0]
    assert not any(requester.replies.get(i) for i in asked)
    assert await requester.depth("dead") == 0


@pytest.mark.parametrize(("status", "kind", "body"), PAGES)
async def test_a_page_of_another_server_for_one_request_fails_that_one_alone(rig, status, kind, body):
    requester = await rig.start(retry_attempts=3)
    rig.sandbox.faults.add(failing(status, content_type=kind, body=body, resource_id="odd"))
    odd = await requester.publish(messenger("odd"))
    assert (await requester.ask(messenger("good")))["status"] == "registered"
    reply = await requester.reply(odd)
    assert (reply["status"], reply["attempts"], reply["httpStatus"]) == ("failed", 3, status)
    assert (await requester.take("dead")).headers["x-ott-reason"] == "exhausted"
    assert not rig.events.closed


async def test_a_dead_letter_has_the_id_of_its_request(requester):
    reply = await requester.ask(b"{}")
    letter = await requester.take("dead")
    assert letter.message_id == reply["requestId"]
