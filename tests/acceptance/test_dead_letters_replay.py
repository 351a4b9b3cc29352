"""Replaying and discarding dead letters (contract §7, §8)."""

import asyncio
import csv
import getpass
import json
import re
import signal
import socket
import time
from hashlib import sha256
from pathlib import Path

import aio_pika
import pytest

from tests.acceptance.dead_letter_commands import Terminal, bury, dead_letters, unchanged
from tests.commands import begin, ott_worker, said
from tests.faults.proxy import Proxy
from tests.rig import MESSENGER, messenger, until
from tests.sandbox_faults import Status
from worker.amqp.consumer import COUNTS
from worker.broker.status import read_orders
from worker.contract.selection import Selection
from worker.dead_letters.plan import Plan
from worker.dead_letters.run import Run


async def test_a_replay_is_registered_or_superseded_and_leaves_the_dead_queue(rig):
    requester = await rig.start()
    await rig.turn_down("p", "old p", correlation_id="p", message_id="p")
    await rig.turn_down("q", "old q", correlation_id="q", message_id="q")
    await requester.ask(messenger("q", "new q"))
    ended = await dead_letters(rig, "replay", "--all")
    await until(lambda: len(requester.replies["p"]) == 2 and len(requester.replies["q"]) == 2, "the replies")
    newest = json.loads(requester.replies["q"][1].body)["supersededBy"]
    first, *outcomes = ended.out.splitlines()
    assert (ended.code, first) == (0, "2 dead letters replayed, 0 left.")
    told = sorted(line.split("  ", 1)[1] for line in outcomes)
    assert told == ["p  p  registered", f"q  q  superseded by {newest}"]
    assert re.search(rf"[0-9a-f]{{16}}  q  request q would be superseded by {newest}\n", ended.err)
    statuses = [json.loads(requester.replies[name][1].body)["status"] for name in ("p", "q")]
    assert statuses == ["registered", "superseded"]
    assert (rig.held("p"), rig.held("q")) == ("old p", "new q")
    assert await requester.depth("dead") == 0


async def test_a_replay_carries_its_origin_and_nothing_that_must_not_travel_twice(rig, requester):
    letter = aio_pika.Message(
        messenger("p"),
        message_id="the-id",
        correlation_id="c",
        user_id="guest",
        headers={
            "x-ott-reason": "exhausted",
            "x-ott-error": "10000 no answer",
            "x-ott-attempts": 6,
            "x-ott-received-at": "2026-11-23T11:00:00.000001Z",
            "x-ott-dead-at": "2026-11-23T12:00:00.000001Z",
            "x-ott-request-id": "the-id",
            "x-ott-replay-count": 2,
            "x-ott-replay-force": True,
            "x-death": [{"reason": "expired", "queue": "somewhere"}],
            "x-first-death-reason": "expired",
            "x-own": "kept",
        },
    )
    await requester.channel.default_exchange.publish(letter, f"{requester.prefix}.dead")
    forced = await dead_letters(rig, "replay", "--all", "--force")
    assert forced.code == 0
    (message,) = await requester.take_all("requests", 1)
    assert (message.message_id, message.correlation_id, message.user_id) == ("the-id", "c", None)
    assert message.body == messenger("p")
    assert message.headers.pop("x-ott-replay-at") > "2026"
    assert {k: v for k, v in message.headers.items() if k not in COUNTS} == {
        "x-ott-received-at": "2026-11-23T11:00:00.000001Z",
        "x-ott-request-id": "the-id",
        "x-ott-replay-count": 3,
        "x-ott-replay-of": "the-id",
        "x-ott-replay-reason": "exhausted",
        "x-ott-replay-force": True,
        "x-ott-user-id": "guest",
        "x-own": "kept",
    }


async def test_what_does_not_match_keeps_its_place_and_contents(rig, requester):
    ids = await bury(requester, 1200, reasons=("exhausted", "forbidden", "invalid"))
    forbidden = ids[1::3]
    ended = await dead_letters(rig, "replay", "--reason", "forbidden", "--force", "--json")
    assert ended.documents == [{"replayed": len(forbidden), "left": 0, "notReplayable": 0}]
    replayed = await requester.take_all("requests", len(forbidden))
    assert [m.message_id for m in replayed] == forbidden
    left = await requester.take_all("dead")
    assert [m.message_id for m in left] == [i for i in ids if i not in set(forbidden)]
    await bury(requester, 1200, reasons=("exhausted", "forbidden", "invalid"))
    fresh = [m for m in await requester.take_all("dead") if m.headers["x-ott-reason"] != "forbidden"]
    assert unchanged(left) == unchanged(fresh)


async def test_what_the_broker_dead_lettered_is_replayed_as_old_as_its_death(rig):
    requester = await rig.start()
    await requester.ask(messenger("before the letter", "so that the journal reaches back"))
    await rig.stop_first()
    await requester.publish(messenger("p", "old"), expiration=0.05)
    await until(lambda: requester.depth("dead"), "the dead letter")
    await rig.start()
    await asyncio.sleep(1.1)  # the broker tells the time of a death to the second
    newer = await requester.ask(messenger("p", "new"))
    refused = await dead_letters(rig, "replay", "--reason", "expired")
    assert (refused.code, refused.out) == (1, "")
    assert f"would be superseded by {newer['requestId']}\n" in refused.err
    assert "--force replays them anyway" in refused.err
    assert await requester.depth("dead") == 1
    assert rig.held("p") == "new"


async def test_what_is_invalid_as_it_is_is_told_before_and_replayed_when_wanted(rig):
    requester = await rig.start()
    await requester.ask(messenger("p", ""), message_id="nameless")
    await requester.ask(messenger("q"), message_id="typed", content_type="text/plain")
    planned = await dead_letters(rig, "replay", "--all", "--dry-run", "--json")
    assert [(d["id"], d["outcome"], d["why"]) for d in planned.documents] == [
        ("nameless", "rejected", "PageName must be provided"),
        ("typed", "rejected", "The content_type is not application/json in UTF-8; send that, or none."),
    ]
    words = await dead_letters(rig, "replay", "--all", "--dry-run")
    assert (planned.code, words.code) == (1, 1)
    assert "rejected again: PageName must be provided" in words.out
    assert words.out.endswith("2 dead letters match: 2 would be rejected again as they are, and stay.\n")
    refused = await dead_letters(rig, "replay", "--all")
    assert (refused.code, refused.out) == (1, "")
    assert "1 dead letter would be rejected again as they are: PageName must be provided" in refused.err
    assert "Nothing would be registered" in refused.err
    assert await requester.depth("dead") == 2
    ended = await dead_letters(rig, "replay", "--all", "--force")
    assert (ended.code, ended.out.split(".")[0]) == (1, "2 dead letters replayed, 0 left")


@pytest.mark.parametrize(("command", "done"), [("replay", "replayed"), ("discard", "discarded")])
@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", 1), ("y", 0)])
async def test_a_question_is_asked_on_standard_error_and_a_no_is_told(
    rig, requester, command, done, answer, code
):
    await bury(requester, 2)
    force = ["--force"] if command == "replay" else []
    with Terminal() as terminal:
        process = await begin(
            rig.settings(), "dead-letters", command, "--all", *force, process={"stdin": terminal.theirs}
        )
        await said(process, "Continue? [y/N]: ")
        terminal.type(f"{answer}\n")
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == code
    if code:
        assert (out, err.decode()) == (b"", f"ott-worker: nothing was {done}\n")
    else:
        assert out.decode().startswith(f"2 dead letters {done}")
    assert await requester.depth("dead") == (2 if code else 0)


async def test_mended_fields_come_from_the_line_or_a_file(rig, tmp_path):
    await rig.start()
    await rig.turn_down("p", "old")
    Path(tmp_path / "secret").write_text("from-a-file\n")
    mended = ["pageName=mended", "applicationSecret=@secret", "isActive=0"]
    given = [f"--set={each}" for each in mended]
    ended = await dead_letters(rig, "replay", "--resource=p", *given)
    assert ended.code == 0
    secrets = {"applicationSecret": "from-a-file"}
    sent = json.loads(messenger("p", "mended", **secrets, isActive=0))
    body = json.dumps(sent, separators=(",", ":")).encode()
    assert rig.sandbox.history.registration_calls[-1].sha256 == sha256(body).hexdigest()
    assert "from-" not in ended.out + ended.err


async def test_a_mended_request_that_is_not_valid_stays_where_it_is(rig, requester):
    ids = await bury(requester, 2)
    command = ("dead-letters", "replay", "--all", "--force", "--same-for-all", "--set", "pageName=")
    ended = await ott_worker(rig.settings(), *command, "--dry-run")
    assert ended.code == 1
    assert "stays: PageName must be provided" in ended.out
    ended = await ott_worker(rig.settings(), *command)
    assert (ended.code, ended.out) == (1, "0 dead letters replayed, 2 left.\n")
    assert ended.err.startswith("ott-worker: 2 dead letters cannot be replayed: PageName must be provided\n")
    assert [m.message_id for m in await requester.take_all("dead")] == ids
    assert await requester.depth("requests") == 0
    assert await read_orders(rig.settings()) == [], "the audit would tell of a replay under way"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay"], "needs a filter, or --all"),
        (["discard"], "needs a filter, or --all"),
        (["discard", "--all"], "confirm with --yes"),
        (["show"], "needs the id"),
        (["replay", "--all", "--set", "nonsense=1"], "must be FIELD=VALUE"),
        (["replay", "--all", "--set", "isActive=yes"], "must be true, false, 0 or 1"),
        (["replay", "--all", "--set", "pageName=@/nowhere"], "cannot be read"),
        (["replay", "--all", "--set", "pageName=-"], "@/dev/stdin reads a value"),
        (["replay", "--all", "--rate", "0"], "--rate must be"),
        (["list", "--since", "yesterday"], "--since must be a time"),
        (["list", "--since", "1" * 400 + "d"], "--since must be a time"),
        (["list", "--platform", "telegram"], "--platform must be messenger or line"),
        (["replay", "--reason", "exausted"], "--reason must be one of delivery_limit, exhausted, expired"),
    ],
)
async def test_wrong_usage_is_one_clear_line(rig, arguments, said):
    ended = await dead_letters(rig, *arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert said in ended.err


@pytest.mark.parametrize(("journal", "code", "why"), [(False, 2, ""), (True, 1, "does not reach back")])
async def test_what_no_journal_tells_of_is_not_published_unless_forced(rig, requester, journal, code, why):
    await bury(requester, 2)
    settings = rig.settings(journal=journal)
    refused = await ott_worker(settings, "dead-letters", "replay", "--all")
    assert (refused.code, refused.out, refused.err.count("\n")) == (code, "", 1)
    assert why in refused.err
    assert "--force" in refused.err
    assert (await requester.depth("dead"), await requester.depth("requests")) == (2, 0)
    forced = await ott_worker(settings, "dead-letters", "replay", "--all", "--force")
    assert (forced.code, await requester.depth("requests")) == (0, 2)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
async def test_one_value_for_several_pages_is_refused_unless_it_is_meant(rig, requester, more):
    await bury(requester, 2)
    command = ("dead-letters", "replay", "--all", "--force", *more)
    for field in ("pageAccessToken=T", "pageId=42"):
        refused = await ott_worker(rig.settings(), *command, "--set", field)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "would give 2 pages or channels the same value" in refused.err
    assert (await requester.depth("dead"), await requester.depth("requests")) == (2, 0)
    common = await ott_worker(rig.settings(), *command, "--set", "isActive=false")
    assert common.code == 0
    assert await requester.depth("requests") == (0 if more else 2)


async def test_many_outcomes_are_told_in_groups_and_one_that_failed_counts(rig):
    await rig.start()
    for i in range(22):
        await rig.turn_down(f"p-{i}", "name")
    rig.sandbox.faults.add(Status(path="registration", resource_id="p-7", status=403, errorcode=20002))
    ended = await dead_letters(rig, "replay", "--all")
    first, good, bad = ended.out.splitlines()
    assert (ended.code, first, good) == (1, "22 dead letters replayed, 0 left.", "21 registered")
    assert bad.startswith("1 failed: HTTP 403 20002 ")


async def test_letters_are_looked_at_while_somebody_replays_and_who_that_is_is_told(rig, requester):
    ids = await bury(requester, 400)
    process = await begin(rig.settings(), "dead-letters", "replay", "--all", "--force", "--rate", "5")
    try:
        await until(lambda: requester.depth("requests"), "the first replay")
        listed = await dead_letters(rig, "list", "--json")
        assert listed.code == 0, listed.err
        assert 0 < len(listed.documents) < 400
        assert [d["id"] for d in listed.documents] == ids[-len(listed.documents) :]
        waiting = await begin(rig.settings(), "dead-letters", "discard", "--all", "--yes")
        try:
            assert waiting.stderr is not None
            line = (await asyncio.wait_for(waiting.stderr.readline(), 60)).decode()
        finally:
            waiting.kill()
            await waiting.communicate()
        user = re.escape(f"{getpass.getuser()}@{socket.gethostname()}")
        assert re.fullmatch(
            rf"ott-worker: {user} has been replaying dead letters since [\d-]+ [\d:]+ UTC: "
            "waiting until that ends\n",
            line,
        )
    finally:
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (130, False)
    assert out.decode().startswith(f"{await requester.depth('requests')} dead letter")
    left = [m.message_id for m in await requester.take_all("dead")]
    assert left == ids[-len(left) :]


async def test_letters_are_exported_corrected_in_a_spreadsheet_and_replayed(rig, tmp_path):
    requester = await rig.start()
    for name in ("p", "q", "r"):
        await rig.turn_down(name, f"old {name}", message_id=name)
    file = tmp_path / "letters.csv"
    written = await dead_letters(rig, "export", str(file))
    assert (written.code, written.out) == (0, f"3 dead letters written to {file}.\n")
    assert file.stat().st_mode & 0o777 == 0o600
    secrets = [MESSENGER["ottPlatformAttributes"][name] for name in ("applicationSecret", "pageAccessToken")]
    assert not [secret for secret in secrets if secret in file.read_text()]
    some = await dead_letters(rig, "export", str(tmp_path / "some.csv"), "p", "nobody")
    assert (some.code, some.out.startswith("1 dead letter written")) == (1, True)
    assert some.err == "ott-worker: no dead letter matches nobody\n"

    # As a spreadsheet saves it: another delimiter, quoted cells; one row corrected, one taken out.
    rows = list(csv.reader(file.read_text(encoding="utf-8-sig").splitlines()))
    name, token = rows[0].index("pageName"), rows[0].index("pageAccessToken")
    rows[1][name], rows[1][token] = "new; name", "new-token"
    with open(file, "w", encoding="utf-8-sig", newline="") as opened:
        csv.writer(opened, delimiter=";", quoting=csv.QUOTE_ALL).writerows(rows[:3])
    ended = await dead_letters(rig, "replay", "--patch", str(file), "--json")
    assert ended.code == 0, ended.err
    assert ended.documents[-1] == {"replayed": 2, "left": 0, "notReplayable": 0}
    assert {each["letter"] for each in ended.documents[:-1]} == {row[0] for row in rows[1:3]}
    corrected = json.loads(messenger("p", "new; name", pageAccessToken="new-token"))
    bodies = [json.dumps(corrected, separators=(",", ":")).encode(), messenger("q", "old q")]
    calls = rig.sandbox.history.registration_calls[-2:]
    assert {call.sha256 for call in calls} == {sha256(body).hexdigest() for body in bodies}
    assert [m.message_id for m in await requester.take_all("dead")] == ["r"]


async def test_letters_that_bear_one_request_id_are_told_apart(rig, requester, tmp_path):
    def letter(page: str) -> aio_pika.Message:
        return aio_pika.Message(messenger(page), message_id="1", headers={"x-ott-reason": "rejected"})

    for page in ("a", "b", "c"):
        await requester.channel.default_exchange.publish(letter(page), f"{requester.prefix}.dead")
    settings, force = rig.settings(), ("--force", "--no-wait")
    listed = (await ott_worker(settings, "dead-letters", "list", "--json")).documents
    keys = {each["resourceId"]: each["letter"] for each in listed}
    for command in ("show", "replay", "discard", "export"):
        more = {"replay": force, "discard": ("--yes",), "export": (str(tmp_path / "x.csv"),)}.get(command, ())
        refused = await ott_worker(settings, "dead-letters", command, *more, *["1"])
        assert refused.code == 1, command
        assert all(key in refused.out for key in keys.values()), command
        assert "3 dead letters have the request id 1" in refused.err
    assert await requester.depth("dead") == 3

    shown = await ott_worker(settings, "dead-letters", "show", keys["c"])
    assert (shown.code, keys["c"] in shown.out.splitlines()[-1]) == (0, True)
    corrected = await ott_worker(
        settings, "dead-letters", "replay", keys["b"], *force, "--set=pageAccessToken=new"
    )
    assert corrected.code == 0
    (replayed,) = await requester.take_all("requests", 1)
    assert json.loads(replayed.body)["ottPlatformAttributes"]["pageId"] == "b"


@pytest.mark.parametrize("kind", ["replay", "discard"])
async def test_a_run_acts_on_the_letters_that_were_planned_and_no_others(rig, requester, kind):
    async def bury_one(page: str, key: str, **headers: str) -> None:
        letter = aio_pika.Message(
            messenger(page),
            message_id="same",
            headers={"x-ott-reason": "rejected", "x-ott-letter": key, **headers},
        )
        await requester.channel.default_exchange.publish(letter, f"{requester.prefix}.dead")

    gone, changed, kept, later = (f"a{n:015x}" for n in range(4))
    for page, key in (("p", gone), ("q", changed), ("r", kept)):
        await bury_one(page, key)
    said: list[str] = []
    run = Run(rig.settings(), Plan(kind, Selection(), force=True), said.append)
    await run.look()
    assert [letter.key for letter in run.plan.letters] == [gone, changed, kept]
    await requester.take_all("dead")
    for page, key in (("r", kept), ("another", changed), ("newer", later)):
        await bury_one(page, key)
    await run.perform(follow=False)
    assert (run.done, run.gone, run.changed) == (1, {gone}, {changed})
    left = [message.headers["x-ott-letter"] for message in await requester.take_all("dead")]
    assert left == [changed, later]
    orders = await read_orders(rig.settings())
    assert [(order.order, order.run, order.count) for order in orders] == [
        ({"replay": "replaying", "discard": "discarding"}[kind], run.number, None),
        ({"replay": "replayed", "discard": "discarded"}[kind], run.number, 1),
    ]


async def test_a_lost_connection_ends_a_replay_with_what_was_done(rig, requester, broker_url):
    await bury(requester, 300)
    async with Proxy.to(broker_url) as proxy:
        process = await begin(
            rig.settings(),
            *("dead-letters", "replay", "--all", "--force", "--rate", "50"),
            OTT_AMQP_URL=proxy.url,
        )
        await until(lambda: requester.depth("requests"), "the first replay")
        proxy.refusing = True
        proxy.reset()
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 3
    assert re.match(r"\d+ dead letters? replayed, \d+ left\.", out.decode())
    assert err.decode().endswith(": run it again for the remaining letters\n")


async def test_killed_in_the_middle_and_run_again_nothing_is_lost(rig):
    """Letters of three kinds: privileges refused, attempts spent, and invalid. For some of the first two
    something newer is registered. All but the invalid are replayed, killed over and over, and at last to the
    end. One letter for each page, so that what Marketing Cloud holds in the end can be told."""
    requester = await rig.start(retry_attempts=1, gate_after=1_000_000)
    third = 60
    kinds = {f"refused-{i}": messenger(f"refused-{i}", "old") for i in range(third)}
    kinds |= {f"spent-{i}": messenger(f"spent-{i}", "old") for i in range(third)}
    kinds |= {f"invalid-{i}": messenger(f"invalid-{i}", "") for i in range(third)}
    for status in (403, 500):
        rig.sandbox.faults.add(Status(path="registration", status=status, count=third))
    asked = {await requester.publish(body, message_id=name): name for name, body in kinds.items()}
    assert {(await requester.reply(i))["status"] for i in asked} == {"failed", "rejected"}
    rig.sandbox.heal()
    replayed = list(kinds)[: 2 * third]
    overtaken = set(replayed[::6])
    for name in overtaken:
        assert (await requester.ask(messenger(name, "new")))["status"] == "registered"

    command = ("dead-letters", "replay", "--reason=forbidden", "--reason=exhausted")
    for _ in range(2):
        replies = len(requester.order)
        process = await begin(rig.settings(), *command, "--rate=8")
        await until(lambda n=replies: len(requester.order) > n, "the first replay's reply")
        process.send_signal(signal.SIGKILL)
        await process.communicate()
        await until(lambda: requester.holds("dead", range(third + 1, 1000)), "what was held to come back")
    ended = await ott_worker(rig.settings(), *command)
    assert ended.code == 0, ended.err

    assert {m.message_id for m in await requester.take_all("dead")} == set(kinds) - set(replayed)
    again = [i for i, name in asked.items() if name in replayed]
    await until(lambda: all(len(requester.replies[i]) > 1 for i in again), "the replies")
    last = {name: json.loads(requester.replies[i][-1].body)["status"] for i, name in asked.items()}
    assert {name for name, status in last.items() if status == "superseded"} == overtaken
    for name in replayed:
        assert rig.held(name) == ("new" if name in overtaken else "old")


async def test_no_more_letters_a_second_are_replayed_than_the_rate(rig, requester):
    await bury(requester, 5)
    began = time.monotonic()
    ended = await dead_letters(rig, "replay", "--all", "--force", "--yes", "--no-wait", "--rate=2")
    assert ended.code == 0, ended.err
    assert time.monotonic() - began >= 2


async def test_discard_removes_what_matches_and_nothing_else(rig, requester):
    ids = await bury(requester, 30, reasons=("exhausted", "invalid"))
    ended = await dead_letters(rig, "discard", "--reason", "invalid", "--since", "2026-01-01", "--yes")
    assert (ended.code, ended.out) == (0, "15 dead letters discarded, 0 left.\n")
    assert [m.message_id for m in await requester.take_all("dead")] == ids[::2]
