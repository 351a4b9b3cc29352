"""Tokens and accounts: what is an outage, and what is one account's own trouble (contract §6)."""

import pytest

from tests.rig import Requester, Rig, failing, messenger, until
from tests.sandbox_faults import Latency, Status
from worker.settings import load_settings

ONE_BROKER = "Tokens and accounts are no matter of RabbitMQ's version."


@pytest.mark.parametrize(("status", "code"), [(401, 0), (403, 40001)])
async def test_a_token_that_is_turned_down_is_replaced_once(rig, requester, status, code):
    await requester.ask(messenger())
    rig.sandbox.faults.add(failing(status, errorcode=code, count=1))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 2)
    assert len(rig.sandbox.history.token_calls) == 2


async def test_a_revoked_token_under_load_is_fetched_again_by_one_caller(rig, requester):
    await requester.ask(messenger())
    rig.sandbox.revoke_tokens()
    rig.sandbox.faults.add(Latency(path="token", seconds=0.2))
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(50)]
    await requester.all_registered(ids)
    assert len(rig.sandbox.history.token_calls) == 2


async def test_refused_credentials_pause_and_dead_letter_nothing(rig):
    rig.sandbox.faults.add(Status(path="token", status=401))
    requester = await rig.start()
    ids = [await requester.publish(messenger(f"page-{i}")) for i in range(5)]
    await until(lambda: len(rig.sandbox.history.token_calls) >= 3, "three probes")
    assert rig.events.closed
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    for i in ids:
        reply = await requester.reply(i)
        assert (reply["status"], reply["attempts"]) == ("registered", 1)
    assert rig.events.opened == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_an_account_that_is_refused_a_token_fails_alone(rig, requester, status):
    rig.sandbox.faults.add(Status(path="token", account="666", status=status))
    wrong = await requester.publish(messenger(), headers={"x-ott-account-id": "666"})
    right = await requester.publish(messenger(), headers={"x-ott-account-id": 777})
    assert (await requester.reply(right))["status"] == "registered"
    reply = await requester.reply(wrong)
    assert (reply["status"], reply["attempts"], reply["errorcode"]) == ("failed", 0, 10000)
    assert (await requester.take("dead")).headers["x-ott-reason"] == "forbidden"
    assert not rig.events.closed


async def test_the_rest_url_of_the_token_is_used_only_below_marketing_clouds_domain(rig):
    requester = await rig.start(mc_rest_url=None)
    await requester.publish(messenger())
    await until(lambda: rig.events.closed, "the gate to close")
    assert "marketingcloudapis.com" in rig.events.closed[0]
    assert len(rig.sandbox.history.registration_calls) == 0


async def test_refused_tokens_of_all_accounts_are_an_outage_that_no_account_is_blamed_for(rig, requester):
    rig.sandbox.faults.add(Status(path="registration", status=401))
    ids = [await requester.publish(messenger("default"))]
    await until(lambda: rig.events.closed, "the gate to close")
    other = {"x-ott-account-id": "777"}
    ids += [await requester.publish(messenger(f"p{n}"), headers=other) for n in range(5)]
    calls = len(rig.sandbox.history.registration_calls)
    await until(lambda: len(rig.sandbox.history.registration_calls) >= calls + 12, "probes of both accounts")
    assert rig.events.opened == 0
    rig.sandbox.heal()
    await requester.all_registered(ids)
    assert await requester.depth("dead") == 0


async def test_many_accounts_that_wait_for_tokens_hold_up_nobody_else(rig):
    requester = await rig.start(prefetch=20)
    for n in range(60):  # 20 token requests go at once, then one a second
        await requester.publish(messenger(f"p{n}"), headers={"x-ott-account-id": str(1000 + n)})
    reply = await requester.ask(messenger("ordinary"))
    assert reply["status"] == "registered"
    assert len(rig.sandbox.history.token_calls) < 30
    letter = await requester.take("dead")
    assert letter.headers["x-ott-reason"] == "exhausted"
    assert "business units" in letter.headers["x-ott-error"]


async def test_an_account_whose_tokens_are_turned_down_fails_alone(rig):
    requester = await rig.start(retry_attempts=1000)  # however long it takes the others to get through
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
    assert not rig.events.closed


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"access_token": "t", "rest_instance_url": "%s", "expires_in": 1' + "0" * 400 + "}", ""),
        ('{"access_token": "t", "rest_instance_url": "https://[x"}', ""),
        ('{"access_token": null, "rest_instance_url": "%s"}', ""),
        ('{"message": "Not here", "errorcode": 404}', ""),
        ("<html>", "text/html"),
    ],
    ids=["life", "url", "null", "error", "page"],
)
async def test_a_token_that_is_none_is_an_outage_and_no_defect(rig, body, kind):
    requester = await rig.start(mc_rest_url=None)
    body = body.replace("%s", rig.sandbox.url)
    rig.sandbox.faults.add(Status(path="token", status=200, body=body, content_type=kind or "text/plain"))
    await requester.publish(messenger())
    await until(lambda: rig.events.closed, "a pause")
    assert await requester.depth("dead") == 0


@pytest.mark.parametrize("status", [429, 500])
async def test_many_requests_of_an_account_whose_token_does_not_come_hold_up_nobody(rig, status):
    """They are exhausted; the first after all attempts, the others soon."""
    settings = rig.settings(prefetch=50, retry_attempts=3)
    service = await rig.start_worker(settings)
    requester = await rig.requester_for(settings)
    rig.sandbox.faults.add(Status(path="token", account="666", status=status))
    bad = [
        await requester.publish(messenger(f"p{n}"), headers={"x-ott-account-id": "666"}) for n in range(250)
    ]
    assert (await requester.ask(messenger("good")))["status"] == "registered"
    [(account, why)] = service.marketing_cloud.accounts.others_in_trouble.items()
    assert account == "666"
    assert why.startswith(f"the token endpoint answered {status}: Requested by")
    replies = [await requester.reply(i) for i in bad]
    assert {(reply["status"], reply["httpStatus"]) for reply in replies} == {("failed", None)}
    assert (await requester.take("dead")).headers["x-ott-reason"] == "exhausted"
    assert not rig.events.closed
    rig.sandbox.heal()
    reply = await requester.ask(messenger("p1"), headers={"x-ott-account-id": "666"})
    assert reply["status"] == "registered"
    assert not service.marketing_cloud.accounts.others_in_trouble


@pytest.mark.parametrize("status", [401, 503])
async def test_where_the_default_account_is_given_no_token_either_it_is_an_outage(rig, status):
    """Even though the token that the default account was given before is still good."""
    requester = await rig.start(mc_account_id="1")
    await requester.ask(messenger())
    other, default = (Status(path="token", account=account, status=status) for account in ("777", "1"))
    rig.sandbox.faults.add(other, default)
    asked = await requester.publish(messenger(), headers={"x-ott-account-id": "777"})
    await until(lambda: rig.events.closed, "the gate to close")
    assert await requester.depth("dead") == 0
    rig.sandbox.heal()
    rig.sandbox.faults.add(default)  # mended last: or the other account might be to blame
    calls = rig.sandbox.history
    await until(lambda: ("777", 200) in {(c.account, c.status) for c in calls.token_calls}, "its token")
    rig.sandbox.heal()
    assert (await requester.reply(asked))["status"] == "registered"


async def test_a_scope_that_was_granted_after_a_403_is_taken_up_by_the_next_request(rig, requester):
    await requester.ask(messenger())
    tokens = len(rig.sandbox.history.token_calls)
    rig.sandbox.faults.add(failing(403, errorcode=20002, count=1))
    reply = await requester.ask(messenger())
    assert (reply["status"], reply["attempts"]) == ("registered", 2)
    rig.sandbox.faults.add(failing(403, errorcode=20002))
    for _ in range(5):
        assert (await requester.ask(messenger()))["status"] == "failed"
    assert len(rig.sandbox.history.token_calls) == tokens + 1


async def test_a_client_secret_is_rotated_by_file_without_a_restart(rig, tmp_path, monkeypatch):
    file = tmp_path / "secret"
    file.write_text("the-old-one\n")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET_FILE", str(file))
    given = rig.settings()
    from_file = {k: getattr(given, k) for k in given.model_fields_set if k != "mc_client_secret"}
    await rig.start_worker(load_settings(**from_file))
    async with Requester(given.amqp_url.get_secret_value(), given.prefix) as requester:
        waiting = await requester.publish(messenger())
        await until(lambda: _refused(rig), "the refusal of the old secret")
        file.write_text("sandbox\n")
        assert (await requester.reply(waiting))["status"] == "registered"


def _refused(rig: Rig) -> bool:
    return any(call.status == 401 for call in rig.sandbox.history if call.endpoint == "token")
