"""The answer table, row by row (contract §6)."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.rig import MESSENGER, Rig, messenger, until
from worker.events import EventListener
from worker.sandbox.faults import Garbage, Half, Hang, Latency, Redirect, Reset, Status


def failing(status: int, **more) -> Status:
    return Status(path="registration", status=status, **more)


async def test_400_is_rejected_with_marketing_clouds_own_errors(rig: Rig) -> None:
    body = (
        '{"message":"Please fix the following errors","errorcode":10006,"documentation":"",'
        '"%s":[{"message":"PageId is taken","errorcode":10005,"documentation":""}]}'
    )
    requester = await rig.start()
    for name in ("validationErrors", "additionalErrors"):
        rig.sandbox.faults.add(failing(400, body=body % name, count=1))
        reply = await requester.ask(messenger())
        assert (reply["status"], reply["httpStatus"], reply["attempts"]) == ("rejected", 400, 1)
        assert reply["validationErrors"] == [
            {"message": "PageId is taken", "errorcode": 10005, "documentation": ""}
        ]
        letter = await requester.take("dead")
        assert letter.headers["x-ott-reason"] == "rejected"
        assert letter.headers["x-ott-error"] == "10006 Please fix the following errors"


async def test_403_is_failed_as_forbidden(rig: Rig) -> None:
    requester = await rig.start()
    rig.sandbox.faults.add(failing(403, errorcode=20002, message="Insufficient privileges", count=1))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["errorcode"], reply["message"]) == (
        "failed",
        20002,
        "Insufficient privileges",
    )
    assert (await requester.take("dead")).headers["x-ott-reason"] == "forbidden"


@pytest.mark.parametrize("status", [404, 405, 409, 413, 415, 422])
async def test_other_4xx_fail_at_once(rig: Rig, status: int) -> None:
    requester = await rig.start()
    rig.sandbox.faults.add(failing(status, count=1))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["httpStatus"], reply["attempts"]) == ("failed", status, 1)
    await requester.take("dead")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_a_passing_fault_is_retried(rig: Rig, status: int) -> None:
    requester = await rig.start()
    rig.sandbox.faults.add(failing(status, count=2))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 3)


@pytest.mark.parametrize(
    "fault",
    [
        Reset(path="registration", count=2),
        Reset(path="registration", count=2, applied=True),
        Half(path="registration", count=2),
        Hang(path="registration", count=2),
        Redirect(path="registration", count=2),
        Garbage(path="registration", count=2, size=2_000_000),
    ],
    ids=["reset", "reset-after", "half", "hang", "redirect", "garbage"],
)
async def test_a_call_that_gets_no_proper_answer_is_retried(rig: Rig, fault) -> None:
    requester = await rig.start(http_timeout=0.5)
    rig.sandbox.faults.add(fault)
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 3)
    assert {call.path for call in rig.sandbox.history.registration_calls} == {"/ott/v1/registration"}


async def test_spent_attempts_end_in_a_dead_letter_while_others_succeed(rig: Rig) -> None:
    requester = await rig.start(retry_attempts=3)
    rig.sandbox.faults.add(failing(500, resource_id="bad", message="Oops", errorcode=123))
    bad = await requester.publish(messenger("bad"))
    assert (await requester.ask(messenger("good")))["status"] == "registered"
    reply = await requester.reply(bad)
    assert (reply["status"], reply["httpStatus"], reply["attempts"]) == ("failed", 500, 3)
    assert (reply["message"], reply["errorcode"]) == ("Oops", 123)
    letter = await requester.take("dead")
    assert (letter.headers["x-ott-reason"], letter.headers["x-ott-attempts"]) == ("exhausted", 3)


async def test_a_spent_budget_ends_in_a_dead_letter(rig: Rig) -> None:
    requester = await rig.start(retry_attempts=1000, retry_budget=0.3, gate_after=10000)
    rig.sandbox.faults.add(failing(503, resource_id="bad"))
    reply = await requester.ask(messenger("bad"))
    assert reply["status"] == "failed"
    assert 1 < reply["attempts"] < 1000


@pytest.mark.parametrize("kind", ["seconds", "date", "body"])
async def test_a_retry_hint_is_honoured(rig: Rig, kind: str) -> None:
    requester = await rig.start()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    hints = {"seconds": {"retry_after": 1}, "date": {"retry_after": date}, "body": {"body_retry_after": 1}}
    rig.sandbox.faults.add(failing(429, errorcode=50100, count=1, **hints[kind]))
    started = time.monotonic()
    assert (await requester.ask(messenger()))["status"] == "registered"
    assert time.monotonic() - started >= 0.9


@pytest.mark.parametrize("hint", [-5, "nonsense", "99999999999999999999", "Mon, 99 Foo 2026"])
async def test_an_absurd_retry_hint_does_not_stop_anything(rig: Rig, hint: object) -> None:
    requester = await rig.start(retry_budget=2)
    rig.sandbox.faults.add(failing(503, count=1, retry_after=hint))
    assert (await requester.ask(messenger()))["status"] == "registered"


@pytest.mark.parametrize(("status", "code"), [(401, 0), (403, 40001)])
async def test_a_token_that_is_turned_down_is_replaced_once(rig: Rig, status: int, code: int) -> None:
    requester = await rig.start()
    await requester.ask(messenger())
    rig.sandbox.faults.add(failing(status, errorcode=code, count=1))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 2)
    assert len(rig.sandbox.history.token_calls) == 2


async def test_a_revoked_token_under_load_is_fetched_again_by_one_caller(rig: Rig) -> None:
    requester = await rig.start()
    await requester.ask(messenger())
    rig.sandbox.revoke_tokens()
    rig.sandbox.faults.add(Latency(path="token", seconds=0.2))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(50)]
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"
    assert len(rig.sandbox.history.token_calls) == 2


class GateFacts(EventListener):
    def __init__(self) -> None:
        self.closed: list[str] = []
        self.opened = 0

    def gate_closed(self, why: str) -> None:
        self.closed.append(why)

    def gate_opened(self, seconds: float) -> None:
        self.opened += 1


async def test_refused_credentials_pause_and_dead_letter_nothing(rig: Rig) -> None:
    events = GateFacts()
    rig.sandbox.faults.add(Status(path="token", status=401))
    requester = await rig.start(events)
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(5)]
    await until(lambda: len(rig.sandbox.history.token_calls) >= 3, "three probes")
    assert events.closed
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    for i in ids:
        reply = await requester.reply(i)
        assert (reply["status"], reply["attempts"]) == ("registered", 1)
    assert events.opened == 1


async def test_a_401_loop_pauses_and_dead_letters_nothing(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events)
    rig.sandbox.faults.add(failing(401))
    asked = await requester.publish(messenger())
    await until(lambda: len(rig.sandbox.history.registration_calls) >= 4)
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    # Two where it healed between the two calls of one attempt.
    assert (await requester.reply(asked))["attempts"] in (1, 2)
    assert len(events.closed) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_an_account_that_is_refused_a_token_fails_alone(rig: Rig, status: int) -> None:
    events = GateFacts()
    rig.sandbox.faults.add(Status(path="token", account="666", status=status))
    requester = await rig.start(events)
    wrong = await requester.publish(messenger(), headers={"x-ott-account-id": "666"})
    right = await requester.publish(messenger(), headers={"x-ott-account-id": 777})
    assert (await requester.reply(right))["status"] == "registered"
    reply = await requester.reply(wrong)
    assert (reply["status"], reply["attempts"], reply["errorcode"]) == ("failed", 0, 10000)
    assert (await requester.take("dead")).headers["x-ott-reason"] == "forbidden"
    assert not events.closed


async def test_an_outage_pauses_spends_no_attempts_and_resumes_by_itself(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=5, retry_attempts=6)
    rig.sandbox.faults.add(failing(503))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(40)]
    await until(lambda: events.closed, "the gate to close")
    calls = len(rig.sandbox.history.registration_calls)
    await until(lambda: len(rig.sandbox.history.registration_calls) >= calls + 3, "three probes")
    probed = [call for call in rig.sandbox.history.registration_calls if call.seq > calls + 60]
    assert len({call.resource_id for call in probed}) == len(probed)
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    for i in ids:
        reply = await requester.reply(i)
        assert reply["status"] == "registered"
        assert reply["attempts"] <= 6
    assert events.opened == 1
    assert await requester.depth("dead") == 0


async def test_500s_of_one_resource_do_not_close_the_gate(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=3, retry_attempts=8)
    rig.sandbox.faults.add(failing(500, resource_id="bad"))
    assert (await requester.ask(messenger("bad")))["status"] == "failed"
    assert not events.closed


async def test_500s_of_three_resources_close_the_gate(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=3, retry_attempts=8)
    rig.sandbox.faults.add(failing(500))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(3)]
    await until(lambda: events.closed, "the gate to close")
    rig.sandbox.heal()
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"


async def test_a_request_that_always_fails_cannot_keep_the_gate_closed(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=2, retry_attempts=3)
    rig.sandbox.faults.add(failing(503, resource_id="bad"))
    bad = await requester.publish(messenger("bad"))
    await until(lambda: events.closed, "the gate to close")
    goods = [await requester.publish(messenger(f"good-{i}")) for i in range(8)]
    for good in goods:
        assert (await requester.reply(good))["status"] == "registered"
    while not requester.replies.get(bad):
        await requester.ask(messenger("good"))
    assert (await requester.reply(bad))["status"] == "failed"


async def test_blocked_without_a_hint_pauses_at_once(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=50)
    rig.sandbox.faults.add(failing(429, errorcode=50200, count=1))
    await requester.publish(messenger())
    await until(lambda: events.closed, "the gate to close")
    assert await requester.depth("dead") == 0


async def test_the_rest_url_of_the_token_is_used_only_below_marketing_clouds_domain(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, mc_rest_url=None)
    await requester.publish(messenger())
    await until(lambda: events.closed, "the gate to close")
    assert "marketingcloudapis.com" in events.closed[0]
    assert len(rig.sandbox.history.registration_calls) == 0


async def test_refused_tokens_of_all_accounts_are_an_outage_that_no_account_is_blamed_for(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events)
    rig.sandbox.faults.add(Status(path="registration", status=401))
    ids = [await requester.publish(messenger("default"))]
    await until(lambda: events.closed, "the gate to close")
    other = {"x-ott-account-id": "777"}
    ids += [await requester.publish(messenger(f"p{n}"), headers=other) for n in range(5)]
    calls = len(rig.sandbox.history.registration_calls)
    await until(lambda: len(rig.sandbox.history.registration_calls) >= calls + 12, "probes of both accounts")
    assert events.opened == 0
    rig.sandbox.heal()
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"
    assert await requester.depth("dead") == 0


async def test_what_waits_for_the_rate_limit_makes_no_call_once_the_gate_is_closed(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, rate_limit=20, gate_after=3, retry_base=1000)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.3))
    rig.sandbox.faults.add(failing(503))
    for n in range(60):
        await requester.publish(messenger(f"p{n}"))
    await until(lambda: events.closed, "the gate to close")
    calls = rig.sandbox.history.registration_calls
    await until(lambda: all(call.status for call in calls), "the calls on their way")
    closed_with = len(calls)
    await asyncio.sleep(1)  # in which twenty more could have gone
    assert len(rig.sandbox.history.registration_calls) == closed_with < 60


async def test_waiting_for_the_rate_limit_does_not_spend_the_budget(rig: Rig) -> None:
    requester = await rig.start(rate_limit=10, retry_budget=2, gate_after=1000, retry_attempts=20)
    rig.sandbox.faults.add(failing(500, count=40))
    ids = [await requester.publish(messenger(f"p{n}")) for n in range(40)]
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"


async def test_an_account_whose_tokens_are_turned_down_fails_alone_once_others_got_through(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(
        events, retry_attempts=1000
    )  # however long it takes the others to get through
    rig.sandbox.faults.add(failing(401, account="666"))
    for number in range(10):
        await requester.ask(messenger(f"good-{number}"))
    wrong = await requester.publish(messenger("bad"), headers={"x-ott-account-id": "666"})
    while not requester.replies.get(wrong):
        await requester.ask(messenger("good"))
    assert (await requester.reply(wrong))["status"] == "failed"
    assert (await requester.take("dead")).headers["x-ott-reason"] == "forbidden"
    tokens = len(rig.sandbox.history.token_calls)
    for number in range(5):
        reply = await requester.ask(messenger(f"bad-{number}"), headers={"x-ott-account-id": "666"})
        assert reply["status"] == "failed"
    assert len(rig.sandbox.history.token_calls) == tokens
    assert not events.closed


async def test_where_every_token_is_turned_down_no_account_is_blamed(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, retry_attempts=6)
    rig.sandbox.faults.add(failing(401))
    ids = [
        await requester.publish(messenger(f"p{n}"), headers={"x-ott-account-id": str(n % 3)})
        for n in range(12)
    ]
    await until(lambda: events.closed, "the gate to close")
    rig.sandbox.heal()
    for i in ids:
        assert (await requester.reply(i))["status"] == "registered"
    assert await requester.depth("dead") == 0


async def test_a_secret_that_marketing_cloud_quotes_is_not_told_as_the_reason_of_a_pause(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, gate_after=1)
    secret = MESSENGER["ottPlatformAttributes"]["pageAccessToken"]
    body = json.dumps({"message": f"Blocked: {secret}", "errorcode": 50200})
    rig.sandbox.faults.add(failing(429, body=body, count=1))
    await requester.publish(messenger())
    await until(lambda: events.closed, "the gate to close")
    assert "***" in str(events.closed)
    assert secret not in str(events.closed)


async def test_a_dead_letter_has_the_id_of_its_request(rig: Rig) -> None:
    requester = await rig.start()
    reply = await requester.ask(b"{}")
    letter = await requester.take("dead")
    assert letter.message_id == reply["requestId"]


async def test_a_probe_does_not_wait_behind_those_that_wait_for_the_rate_limit(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events, rate_limit=1, gate_after=2)
    rig.sandbox.faults.add(failing(503, count=2))
    for i in range(60):
        await requester.publish(messenger(f"p{i}"))
    await until(lambda: events.opened, "the gate to open: in a minute, at a call a second")


async def test_however_many_requests_name_an_account_that_is_turned_down_the_others_go_on(rig: Rig) -> None:
    events = GateFacts()
    requester = await rig.start(events)
    rig.sandbox.faults.add(failing(401, account="666"))
    bad = [
        await requester.publish(messenger(f"bad-{n}"), headers={"x-ott-account-id": "666"}) for n in range(50)
    ]
    assert (await requester.ask(messenger("good")))["status"] == "registered"
    for i in bad:
        assert (await requester.reply(i))["status"] == "failed"
    assert (await requester.take("dead")).headers["x-ott-reason"] == "forbidden"
    assert not events.closed


async def test_an_account_that_is_turned_down_again_and_again_fails_though_nobody_else_sends(
    rig: Rig,
) -> None:
    requester = await rig.start(retry_attempts=3)
    rig.sandbox.faults.add(failing(401, account="666"))
    reply = await requester.ask(messenger(), headers={"x-ott-account-id": "666"})
    assert (reply["status"], reply["httpStatus"]) == ("failed", 401)
    assert len(rig.sandbox.history.token_calls) <= 7


@pytest.mark.parametrize("status", [429, 500])
async def test_an_account_whose_token_does_not_come_waits_alone_until_it_does(rig: Rig, status: int) -> None:
    events = GateFacts()
    requester = await rig.start(events)
    rig.sandbox.faults.add(Status(path="token", account="666", status=status))
    bad = [await requester.publish(messenger(f"p{n}"), headers={"x-ott-account-id": "666"}) for n in range(9)]
    for n in range(5):
        assert (await requester.ask(messenger(f"good-{n}")))["status"] == "registered"
    assert not any(requester.replies.get(i) for i in bad)
    rig.sandbox.heal()
    for i in bad:
        assert (await requester.reply(i))["status"] == "registered"
    assert not events.closed


@pytest.mark.parametrize(
    "answer",
    [
        {"expires_in": 10**400},
        {"rest_instance_url": "https://[x"},
        {"access_token": None},
    ],
)
async def test_a_token_that_is_none_is_an_outage_and_no_defect(rig: Rig, answer: dict[str, object]) -> None:
    events = GateFacts()
    requester = await rig.start(events, mc_rest_url=None)
    body = json.dumps({"access_token": "t", "rest_instance_url": rig.sandbox.url, **answer})
    rig.sandbox.faults.add(Status(path="token", status=200, body=body))
    await requester.publish(messenger())
    await until(lambda: events.closed, "a pause")


async def test_a_secret_is_masked_however_it_is_quoted_and_a_short_one_only_where_it_stands_alone(
    rig: Rig,
) -> None:
    requester = await rig.start()
    quoted = json.dumps({"t": 'pa"ss/wörd'})
    message = f"Please fix x of {quoted} or pa%22ss%2Fw%C3%B6rd"
    rig.sandbox.faults.add(failing(400, body=json.dumps({"message": message, "errorcode": 10006})))
    reply = await requester.ask(messenger(applicationSecret="x", pageAccessToken='pa"ss/wörd'))
    assert reply["message"] == 'Please fix *** of {"t": "***"} or ***'
