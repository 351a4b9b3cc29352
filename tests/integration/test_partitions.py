"""Several workers at once, and the order kept (contract §10)."""

from collections import Counter, defaultdict

from tests.rig import Rig, messenger

PARTITIONS = 4
PAGES = [str(10**9 + number) for number in range(24)]


def versions(rig: Rig) -> dict[str, list[str]]:
    """What Marketing Cloud was told of each page, in order."""
    told: dict[str, list[str]] = defaultdict(list)
    for call in rig.sandbox.history.registration_calls:
        attributes = (call.body or {})["ottPlatformAttributes"]
        told[attributes["pageId"]].append(attributes["pageName"])
    return told


async def test_one_worker_with_partitions_registers_in_order(rig: Rig) -> None:
    requester = await rig.start(partitions=PARTITIONS)
    ids = [
        await requester.publish(messenger(page, f"version {version}"))
        for version in range(5)
        for page in PAGES
    ]
    replies = [await requester.reply(each) for each in ids]
    assert Counter(reply["status"] for reply in replies) == {"registered": len(ids)}
    assert versions(rig) == {page: [f"version {number}" for number in range(5)] for page in PAGES}
