"""What an operator changes: pause, replay, mend, discard; each with a reason, each recorded."""

from typing import Any

import aio_pika
import pytest

from tests.console.conftest import JSON, Running
from tests.rig import Requester, Rig, messenger
from tests.sandbox_faults import Status
from worker.contract.settlement import Resource
from worker.sandbox.faults import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def post(running: Running, path: str, **form: Any) -> tuple[int, dict[str, Any]]:
    async with running.session.post(path, headers=JSON, data=form) as response:
        return response.status, await response.json()


def refusal(count: int) -> Fault:
    """So many registrations are answered 404, which is not tried again."""
    return Status(path="registration", status=404, count=count)


async def dead(requester: Requester, page_id: str, **attributes: Any) -> str:
    """A dead letter for a page, by default without an endpoint; returns its request's id."""
    reply = await requester.ask(messenger(page_id, **{"endpointUrl": "", **attributes}))
    assert reply["status"] != "registered"
    return str(reply["requestId"])


async def refused(rig: Rig, requester: Requester, page_id: str) -> str:
    """A dead letter for a page that Marketing Cloud turned down once; returns its request's id."""
    rig.sandbox.faults.add(refusal(1))
    return await dead(requester, page_id, endpointUrl="https://example.com")


async def done(running: Running, run: dict[str, Any], **form: Any) -> dict[str, Any]:
    """What a plan has come to when it was carried out."""
    await post(running, f"/runs/{run['run']}/start", **{"why": "granted", "canary": "none", **form})
    return await ended(running, run)


async def listed(running: Running, count: int) -> None:
    """Wait until the page shows so many."""
    await running.becomes("/dead-letters", lambda page: page["total"] == count)


async def ended(running: Running, run: dict[str, Any]) -> dict[str, Any]:
    path = f"/runs/{run['run']}"
    return await running.becomes(path, lambda now: now["phase"] not in ("planning", "running"))


async def orders(running: Running) -> list[dict[str, Any]]:
    document = await running.json("/audit")
    return [{k: order.get(k) for k in ("order", "why", "count")} for order in document["orders"]]


async def test_a_pause_wants_a_reason_and_is_in_the_audit_list(rig, console):
    await rig.start()
    status, document = await post(console, "/pause", why="  ")
    assert status == 400
    assert "reason" in str(document["problem"])
    _, document = await post(console, "/pause", why="maintenance")
    assert document["paused"]["why"] == "maintenance"
    _, document = await post(console, "/resume", why="it is over")
    assert document["paused"] is None
    assert await orders(console) == [
        {"order": "resume", "why": "it is over", "count": None},
        {"order": "pause", "why": "maintenance", "count": None},
    ]


async def test_a_plan_tells_what_would_come_of_each_letter_and_changes_nothing(rig, requester, console):
    for page in ("1", "2"):
        await refused(rig, requester, page)
    await dead(requester, "3")
    assert (await requester.ask(messenger("2")))["status"] == "registered"
    await listed(console, 3)
    _, run = await post(console, "/runs", do="replay")
    assert run["phase"] == "planned"
    assert run["plan"] == {"replayed": 1, "superseded": 1, "rejected": 1}
    assert run["count"] == 2  # what would be rejected again stays
    assert await requester.depth("dead") == 3


async def test_a_canary_that_fails_stops_the_replay(rig, requester, console):
    rig.sandbox.faults.add(refusal(4))
    for page in ("1", "2", "3"):
        await dead(requester, page, endpointUrl="https://example.com")
    await listed(console, 3)
    _, run = await post(console, "/runs", do="replay")
    run = await done(console, run, canary="one")
    assert (run["phase"], run["done"], run["outcomes"]) == ("stopped", 1, {"failed": 1})
    assert (await orders(console))[0]["count"] == 1


async def test_a_replay_can_be_cancelled_and_the_rest_stays(rig, requester, console):
    for page in range(20):
        await refused(rig, requester, str(page))
    await listed(console, 20)
    _, run = await post(console, "/runs", do="replay")
    await post(console, f"/runs/{run['run']}/start", why="slowly", canary="none", rate="2")
    await console.becomes(f"/runs/{run['run']}", lambda now: now["done"])
    await post(console, f"/runs/{run['run']}/cancel")
    run = await ended(console, run)
    assert run["phase"] == "cancelled"
    assert 0 < run["done"] < 20
    assert (await orders(console))[0]["count"] == run["done"]


async def test_a_letter_is_corrected_with_its_difference_shown_first(rig, requester, console):
    request_id = await dead(requester, "1")
    await listed(console, 1)
    form = {"do": "correct", "letter": request_id, "platform": "messenger", "set.pageId": "1"}
    form |= {"set.applicationId": "1093076390764037", "set.pageName": "SFMC Engineers"}
    status, _ = await post(console, "/runs", **form)
    assert status == 400  # nothing was changed
    form |= {"set.endpointUrl": "https://example.com/new", "set.pageAccessToken": "a-new-token"}
    _, run = await post(console, "/runs", **form)
    page = await console.html(f"/runs/{run['run']}")
    assert "https://example.com/new" in page
    assert "a-new-token" not in page
    run = await done(console, run)
    assert run["outcomes"] == {"registered": 1}
    registered = rig.sandbox.registrations[Resource(None, "messenger", "1")].body
    assert registered["ottPlatformAttributes"]["endpointUrl"] == "https://example.com/new"


async def test_a_replay_of_which_nothing_would_be_registered_is_refused(requester, console):
    await dead(requester, "1")
    await listed(console, 1)
    _, run = await post(console, "/runs", do="replay")
    assert "would be rejected again" in run["refusal"]
    status, _ = await post(console, f"/runs/{run['run']}/start", why="try", canary="none")
    assert (status, await requester.depth("dead")) == (400, 1)
    assert "dead-letters replay --force" in await console.html(f"/runs/{run['run']}")


async def test_one_correction_for_a_cause_wants_to_be_meant_for_several_pages(requester, console):
    for page in ("1", "2"):
        await dead(requester, page)
    await listed(console, 2)
    document = await console.json("/dead-letters")
    (cause,), version = document["groups"], document["version"]
    assert "Correct 2" in await console.html(f"/dead-letters?cause={cause['cause']}")
    await dead(requester, "3")
    await listed(console, 3)
    form = {"do": "correct", "cause": cause["cause"], "version": version, "platform": "messenger"}
    _, refused = await post(console, "/runs", **form, **{"set.pageAccessToken": "new"})
    assert "the same value" in refused["problem"]
    _, run = await post(console, "/runs", **form, **{"set.endpointUrl": "https://example.com"})
    assert run["count"] == 2  # those that the page showed
    run = await done(console, run, canary="one")
    assert run["outcomes"] == {"registered": 2}
    audit = await console.html("/audit")
    assert audit.count(f'href="/runs/{run["run"]}"') == 1
    assert "2 registered" in audit


async def test_ids_of_any_bytes_are_shown(requester, console):
    odd = "../a\nb/c é <b>"
    await requester.channel.default_exchange.publish(
        aio_pika.Message(messenger(".."), message_id=odd, headers={"x-ott-reason": "rejected"}),
        f"{requester.prefix}.dead",
    )
    await listed(console, 1)
    document = await console.json("/dead-letters")
    (letter,) = document["letters"]
    page = await console.html(f"/dead-letters/{letter['letter']}")
    assert "/resources/messenger/?id=.." in page
    assert "é" in page
    resource = await console.json("/resources/messenger/?id=..")
    assert [each["id"] for each in resource["deadLetters"]] == [odd]


async def test_discarding_asks_for_the_count(rig, requester, console):
    for page in ("1", "2"):
        await dead(requester, page)
    kept = await refused(rig, requester, "3")
    await listed(console, 3)
    _, run = await post(console, "/runs", do="discard", reason="invalid")
    assert run["count"] == 2
    status, document = await post(console, f"/runs/{run['run']}/start", why="sent by mistake", count="3")
    assert status == 400
    assert "Enter 2" in str(document["problem"])
    assert (await done(console, run, why="sent by mistake", count="2"))["phase"] == "done"
    await listed(console, 1)
    remaining = await console.json("/dead-letters")
    assert [letter["id"] for letter in remaining["letters"]] == [kept]
    assert (await orders(console))[0] == {"order": "discarded", "why": "sent by mistake", "count": 2}


@pytest.mark.parametrize("path", ["/pause", "/resume", "/runs", "/runs/x/start", "/runs/x/cancel"])
async def test_a_read_only_console_changes_nothing_and_says_why(rig, start_console, path):
    await rig.start()
    console = await start_console(console_read_only=True)
    status, document = await post(console, path, why="a test")
    assert status == 403
    assert "OTT_CONSOLE_READ_ONLY" in str(document["problem"])
    assert "disabled" in await console.html("/")
