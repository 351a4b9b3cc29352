"""Dead letters encrypted at rest: with the keys nothing is different, without them nothing is lost."""

import base64
import json
import os

import pytest

from tests.acceptance.dead_letter_commands import bury
from tests.commands import ott_worker
from tests.rig import Requester, Rig, messenger, until
from tests.sandbox_faults import Status
from worker.settings import Settings


def key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


async def bury_one(rig: Rig, keys: str, page: str = "page-1") -> tuple[Requester, Settings]:
    """A dead letter of a worker that has these keys, and an operator's settings without any."""
    rig.sandbox.faults.add(Status(path="registration", status=403, count=1, resource_id=page))
    requester = await rig.start(dead_letter_keys=keys)
    await requester.ask(messenger(page))
    await until(lambda: requester.depth("dead"), "the dead letter")
    return requester, rig.settings()


async def test_with_the_keys_letters_are_shown_selected_and_replayed_as_ever(rig, tmp_path):
    keys = key("one")
    _, operator = await bury_one(rig, keys)
    (tmp_path / "keys").write_text(keys)
    given = {"OTT_DEAD_LETTER_KEYS_FILE": str(tmp_path / "keys")}
    listed = await ott_worker(operator, "dead-letters", "list", "--json", "--resource", "page-1", **given)
    (letter,) = listed.documents
    assert letter["ottPlatformName"] == "messenger"
    shown = await ott_worker(operator, "dead-letters", "show", letter["id"], "--json", **given)
    assert json.loads(shown.out)["body"]["ottPlatformAttributes"]["pageId"] == "page-1", shown.err
    replayed = await ott_worker(operator, "dead-letters", "replay", "--all", "--yes", **given)
    assert replayed.code == 0, replayed.err
    await until(lambda: len(rig.sandbox.registrations) == 1, "the replay")


@pytest.mark.parametrize("other", [None, "another"], ids=["no keys", "another key"])
async def test_without_the_key_a_letter_is_listed_and_stays_where_it_is(rig, other):
    requester, operator = await bury_one(rig, key("one"))
    given = {"OTT_DEAD_LETTER_KEYS": key(other)} if other else {}
    listed = await ott_worker(operator, "dead-letters", "list", "--json", **given)
    (letter,) = listed.documents
    assert (letter["reason"], letter["resourceId"]) == ("forbidden", None)
    shown = await ott_worker(operator, "dead-letters", "show", letter["id"], "--json", **given)
    needed = "The dead letter is encrypted with the key one: add it to OTT_DEAD_LETTER_KEYS"
    assert json.loads(shown.out)["bodyProblem"] == needed
    replayed = await ott_worker(operator, "dead-letters", "replay", "--all", "--yes", **given)
    assert replayed.code == 1
    assert "Traceback" not in replayed.err
    assert await requester.depth("dead") == 1


async def test_a_replay_that_fails_again_is_encrypted_again_with_the_newest_key(rig):
    old, new = key("old"), key("new")
    requester, operator = await bury_one(rig, old)
    rig.sandbox.faults.add(Status(path="registration", status=403, count=1))
    await rig.stop_first()
    await rig.start(dead_letter_keys=f"{new},{old}")
    given = {"OTT_DEAD_LETTER_KEYS": f"{new},{old}"}
    await ott_worker(operator, "dead-letters", "replay", "--all", "--yes", **given)
    await until(lambda: len(requester.order) == 2, "the second reply")
    letter = await requester.take("dead")
    assert letter.headers["x-ott-sealed"] == "new"
    assert b"messenger" not in letter.body


async def test_a_letter_in_the_clear_is_replayed_only_if_the_broker_made_it_or_on_a_flag(rig):
    requester, operator = await bury_one(rig, key("one"))
    await requester.take("dead")
    await rig.stop_first()
    await bury(requester, 1)
    await requester.publish(messenger("q"), expiration=0.05, message_id="brokers")
    await until(lambda: requester.holds("dead", [2]), "the broker's letter")
    given = {"OTT_DEAD_LETTER_KEYS": key("one")}
    command = ("dead-letters", "replay", "--all", "--force", "--yes")
    refused = await ott_worker(operator, *command, **given)
    assert (refused.code, refused.out) == (1, "1 dead letter replayed, 1 left.\n")
    planned = await ott_worker(operator, *command, "--dry-run", **given)
    assert "is not encrypted" in planned.out
    accepted = await ott_worker(operator, *command, "--accept-unencrypted", **given)
    assert (accepted.code, await requester.depth("dead")) == (0, 0)
