"""Looking at dead letters never changes them (contract §8)."""

import json
import signal

import pytest

from tests.acceptance.dead_letter_commands import bury, dead_letters, unchanged
from tests.commands import begin, ott_worker
from tests.rig import MESSENGER, messenger, until
from worker.amqp.consumer import COUNTS


async def test_list_prints_one_json_object_for_each_letter_oldest_first(rig):
    requester = await rig.start(gate_after=100, retry_attempts=1)
    await rig.turn_down("p", "name", message_id="first")
    await requester.ask(b"no json", message_id="second")
    ended = await dead_letters(rig, "list", "--json")
    assert ended.code == 0
    first, second = ended.documents
    assert (first["id"], first["reason"]) == ("first", "forbidden")
    assert (first["ottPlatformName"], first["resourceId"]) == ("messenger", "p")
    assert first["receivedAt"] < first["deadAt"]
    assert first["error"] == "20002 No privileges"
    assert (second["id"], second["reason"], second["ottPlatformName"]) == ("second", "invalid", None)


async def test_list_groups_by_reason_and_error_and_ends_early(rig, requester):
    ids = await bury(requester, 7, reasons=("exhausted", "forbidden", "exhausted"))
    grouped = await dead_letters(rig, "list", "--by", "error", "--json")
    first, second = grouped.documents
    assert (first["reason"], first["error"], first["count"]) == ("exhausted", "10000 no answer", 5)
    assert (first["first"], first["last"]) == ("2026-11-23T12:00:00.000000Z", "2026-11-23T12:00:06.000006Z")
    assert (second["reason"], second["count"]) == ("forbidden", 2)
    words = await dead_letters(rig, "list", "--by", "error")
    assert words.out.splitlines()[-1] == "7 dead letters: 5 exhausted, 2 forbidden"
    limited = await dead_letters(rig, "list", "--limit", "2", "--json")
    assert [d["id"] for d in limited.documents] == ids[:2]
    words = await dead_letters(rig, "list", "--limit", "2")
    assert words.out.splitlines()[-1] == "The first 2 dead letters: 1 exhausted, 1 forbidden"
    assert [m.message_id for m in await requester.take_all("dead")] == ids


async def test_looking_keeps_order_and_contents(rig, requester):
    ids = await bury(requester, 1200)
    for _ in range(2):
        listed = await dead_letters(rig, "list", "--json")
        assert [d["id"] for d in listed.documents] == ids
    shown = await dead_letters(rig, "show", ids[7], "--json")
    assert [d["id"] for d in shown.documents] == [ids[7]]
    left = await requester.take_all("dead")
    assert [m.message_id for m in left] == ids
    assert [m.body for m in left] == [messenger(f"page-{i % 50}", f"version {i}") for i in range(1200)]


async def test_a_look_that_is_killed_changes_nothing(rig, requester):
    ids = await bury(requester, 1200)
    killed_in_the_middle = 0
    for _ in range(3):
        process = await begin(rig.settings(), "dead-letters", "list", "--json")
        await until(
            lambda p=process: requester.holds("dead", range(1200)) or p.returncode is not None, "a look"
        )
        if await requester.depth("dead") < 1200:
            killed_in_the_middle += 1
        process.send_signal(signal.SIGKILL)
        await process.communicate()
    assert killed_in_the_middle
    listed = await dead_letters(rig, "list", "--json")
    assert [d["id"] for d in listed.documents] == ids
    assert [m.message_id for m in await requester.take_all("dead")] == ids


async def test_a_hundred_looks_use_up_no_delivery_limit(rig, requester):
    await bury(requester, 3)
    before = await requester.take_all("dead")
    await bury(requester, 3)
    # Each look counts as a delivery; brokers drop at 20 by default.
    queue = await requester.channel.get_queue(f"{requester.prefix}.dead", ensure=False)
    for _ in range(100):
        message = await until(lambda: queue.get(fail=False), "a letter")
        await message.nack(requeue=True)
    ended = await dead_letters(rig, "list", "--json")
    assert len(ended.documents) == 3
    after = await requester.take_all("dead")
    counts = [m.headers.get(name, 0) for m in after for name in COUNTS]
    assert max(counts) > 20  # from 4.3 on a look counts as acquired, and not towards the limit
    assert sorted(map(repr, unchanged(after))) == sorted(map(repr, unchanged(before)))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--reason", "forbidden"], [1, 4]),
        (["--reason", "forbidden", "--reason", "invalid"], [1, 2, 4, 5]),
        (["--platform", "line"], []),
        (["--resource", "page-3"], [3]),
        (["--error", "NO Answer", "--reason", "invalid"], [2, 5]),
        (["--error", "something else"], []),
        (["--user", "nobody"], []),
        (["--id", "letter-00002", "--id", "letter-00004"], [2, 4]),
        (["--since", "2026-11-23T12:00:04Z"], [4, 5]),
        (["--until", "2026-11-23T12:00:01.5Z", "--reason", "forbidden"], [1]),
        (["--since", "2026-11-23T13:00:01.000001+01:00", "--until", "2026-11-23 12:00:01.000001"], [1]),
    ],
)
async def test_filters(rig, requester, filters, expected):
    ids = await bury(requester, 6, reasons=("exhausted", "forbidden", "invalid"))
    ended = await dead_letters(rig, "list", "--json", *filters)
    assert [d["id"] for d in ended.documents] == [ids[i] for i in expected]


async def test_what_the_broker_dead_lettered_is_listed_with_its_reason_and_time(rig, requester):
    await requester.publish(messenger("p"), expiration=0.05, message_id="late")
    await until(lambda: requester.depth("dead"), "the dead letter")
    (letter,) = (await dead_letters(rig, "list", "--json")).documents
    assert (letter["id"], letter["reason"], letter["resourceId"]) == ("late", "expired", "p")
    assert letter["deadAt"] == letter["receivedAt"] > "2026"


async def test_no_secret_is_shown_unless_asked_for(rig, requester, secret_values):
    attributes = {**MESSENGER["ottPlatformAttributes"], **secret_values}
    body = json.dumps({**MESSENGER, "ottPlatformAttributes": attributes, "PAGEACCESSTOKEN": "stray-canary"})
    await requester.publish(
        body.encode(), expiration=0.05, headers={"x-note": secret_values["channelSecret"]}
    )
    await requester.publish(body[:-2].encode(), expiration=0.05)
    await until(lambda: requester.holds("dead", [2]), "the dead letters")
    canaries = [*secret_values.values(), "stray-canary"]
    for arguments in (["list"], ["list", "--json"], ["show", "--reason", "expired"]):
        for more in ([], ["--json"]):
            ended = await dead_letters(rig, *arguments, *more)
            assert ended.code == 0
            assert not [canary for canary in canaries if canary in ended.out + ended.err]
    revealed = await dead_letters(rig, "show", "--reason", "expired", "--reveal")
    assert [canary for canary in canaries if canary in revealed.out] == canaries


async def test_hostile_letters_are_listed_and_shown_like_any_other(rig, requester):
    await requester.publish(
        messenger("\x1b[2Jpage"),
        expiration=0.05,
        message_id="\x1b]0;title\x07",
        content_type="text/evil",
        headers={"deep": {"er": [{"x": [1, None, True]}]}, "x-ott-received-at": "never"},
    )
    await requester.publish(b"\xff\xfe[[[", expiration=0.05, correlation_id="c" * 255)
    await until(lambda: requester.holds("dead", [2]), "the dead letters")
    for arguments in (["list"], ["show", "--reason", "expired", "--reveal"], ["list", "--json"]):
        ended = await dead_letters(rig, *arguments)
        assert (ended.code, ended.err) == (0, "")
        assert "\x1b" not in ended.out


async def test_an_empty_queue_and_a_missing_one_are_told_apart(rig, requester):
    empty = await dead_letters(rig, "list")
    assert (empty.code, empty.out) == (0, "No dead letters.\n")
    await bury(requester, 1)
    none = await dead_letters(rig, "list", "--reason", "invalid")
    assert (none.code, none.out) == (0, "No dead letter matches.\n")
    nobody = await dead_letters(rig, "show", "nobody")
    assert (nobody.code, nobody.err) == (1, "ott-worker: no dead letter matches nobody\n")
    missing = await ott_worker(rig.settings(prefix="test.nowhere"), "dead-letters", "list")
    assert (missing.code, missing.err.count("\n")) == (3, 1)
    assert "test.nowhere.dead is missing" in missing.err
    unreachable = await dead_letters(rig, "list", OTT_AMQP_URL="amqp://127.0.0.1:1")
    assert (unreachable.code, unreachable.err.count("\n")) == (3, 1)


async def test_a_reader_that_goes_away_ends_the_list_quietly(rig, requester):
    await bury(requester, 2000)
    process = await begin(rig.settings(), "dead-letters", "list")
    assert process.stdout is not None
    await process.stdout.readline()
    process.stdout._transport.close()
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
