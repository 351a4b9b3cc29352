"""Several workers at once, and the order kept (contract §10)."""

import asyncio
import json
import time
from collections import defaultdict
from itertools import pairwise

import aio_pika
import pytest
from aiohttp import web

from tests.rig import Events, Requester, Rig, messenger, until
from tests.sandbox_faults import Latency
from worker.amqp.connection import Connection, cancel_all
from worker.amqp.queue import QueueState
from worker.broker import topology
from worker.broker.topology import Topology
from worker.contract import timestamps
from worker.contract.settlement import Resource
from worker.contract.words import (
    ARRIVED_AT_HEADER,
    AS_OF_HEADER,
    BARRIER_TYPE,
    CAME_BY_HEADER,
    EPOCH_HEADER,
    REQUEST_KEY,
    ROUTED_HEADERS,
)
from worker.partitions import log, pruning
from worker.partitions import worker as members
from worker.partitions.log import read_partition_state
from worker.partitions.pruning import prune
from worker.partitions.router import Router, partition_of
from worker.partitions.worker import weight
from worker.sandbox.faults import CarryOut, Fault
from worker.service import Service

PARTITIONS = 4
PAGES = [str(10**9 + number) for number in range(24)]
# What a router of long ago put into a partition:
LATE = {EPOCH_HEADER: 0, ARRIVED_AT_HEADER: 0, CAME_BY_HEADER: REQUEST_KEY}


async def publish(requester: Requester, versions: range, pages: list[str] = PAGES) -> list[str]:
    """Each version of each page, in order; the correlation ids."""
    return [
        await requester.publish(messenger(page, f"version {version}"))
        for version in versions
        for page in pages
    ]


def told(rig: Rig) -> dict[str, list[int]]:
    """Which versions Marketing Cloud was told of each page, in the order in which their calls ended."""
    versions: dict[str, list[int]] = defaultdict(list)
    calls = [call for call in rig.sandbox.history.registration_calls if call.status == 201]
    for call in sorted(calls, key=lambda call: call.finished_at or 0.0):
        attributes = (call.body or {})["ottPlatformAttributes"]
        versions[attributes["pageId"]].append(int(attributes["pageName"].removeprefix("version ")))
    return versions


def repeats_no_more_than_it_must(versions: list[int]) -> bool:
    """In order, except that what a worker left unacknowledged may come again, with all that follows it."""
    return all(after <= before + 1 for before, after in pairwise(versions))


def first_call_waits(released: asyncio.Event) -> Fault:
    class Late(Fault):
        async def answer(self, request: web.Request, carry_out: CarryOut) -> web.Response:
            await released.wait()
            return carry_out()

    return Late(kind="hang", path="registration", count=1)


def spread(rig: Rig) -> bool:
    """Whether each worker has the partitions that are to be its own, as it says."""
    names = {service.name: service for service in rig.services}
    wanted: dict[str, list[int]] = {name: [] for name in names}
    for number in range(1, 9):
        wanted[max(names, key=lambda name: (weight(name, number), name))].append(number)
    return all(service.partitions.taken == wanted[name] for name, service in names.items())


async def test_workers_spread_after_a_start_a_join_an_end_and_a_death(rig):
    settings = rig.settings(partitions=8)
    requester = await rig.requester_for(settings)
    took = {}
    for what in ("start", "join", "end", "death"):
        began = time.monotonic()
        if what == "start":
            await asyncio.gather(*(rig.start_worker(settings, tells_status=True) for _ in range(3)))
            publishing = asyncio.create_task(publish(requester, range(10)))
        elif what == "join":
            await rig.start_worker(settings, tells_status=True)
        elif what == "end":
            await rig.stop_first()
        else:
            await rig.lose_worker(rig.services[0])
        await until(lambda: spread(rig), f"the spread after a {what}")
        took[what] = time.monotonic() - began
        if what == "start":
            await requester.all_registered(await publishing)  # the others come with nothing to do
    assert max(took.values()) < 15, took
    await requester.all_registered(await publish(requester, range(10, 12)))
    assert told(rig) == {page: list(range(12)) for page in PAGES}


async def test_workers_come_and_go_and_the_order_is_kept(rig):
    settings = rig.settings(partitions=PARTITIONS, coalesce_after=0)
    services = [await rig.start_worker(settings) for _ in range(2)]
    requester = await rig.requester_for(settings)
    rig.sandbox.faults.add(Latency(seconds=0.005, up_to=0.02))
    publishing = asyncio.create_task(publish(requester, range(20)))
    services.append(await rig.start_worker(settings))
    await until(lambda: len(requester.order) > 100, "replies")
    await rig.stop_worker(services.pop(0))
    services.append(await rig.start_worker(settings))
    await until(lambda: len(requester.order) > 200, "replies")
    await rig.stop_worker(services.pop(0))
    await requester.all_registered(await publishing)
    versions = told(rig)
    assert all(repeats_no_more_than_it_must(versions[page]) for page in PAGES)
    assert {versions[page][-1] for page in PAGES} == {19}


async def test_the_number_changes_up_and_down_under_load_and_what_is_not_used_is_pruned(rig):
    requester = await rig.requester_for(rig.settings(partitions=2))
    rig.sandbox.faults.add(Latency(seconds=0.005, up_to=0.02))
    before = await rig.start_worker(rig.settings(partitions=2, coalesce_after=0))
    publishing = asyncio.create_task(publish(requester, range(24)))
    for number, replies in ((4, 100), (2, 250)):
        await until(lambda replies=replies: len(requester.order) > replies, "replies")
        after = await rig.start_worker(rig.settings(partitions=number, coalesce_after=0))
        await rig.stop_worker(before)
        before = after
    await requester.all_registered(await publishing)
    await requester.all_registered(await publish(requester, range(24, 25)))
    versions = told(rig)
    assert all(repeats_no_more_than_it_must(versions[page]) for page in PAGES)
    assert {versions[page][-1] for page in PAGES} == {24}
    deleted: list[int] = []

    async def all_is_pruned() -> bool:
        # A barrier may have come back from the worker that stopped, and be settled once more.
        pruned = [each async for each in prune(rig.settings(partitions=2))]
        deleted.extend(each.partition for each in pruned if not each.kept_because)
        return all(not each.kept_because for each in pruned)

    await until(all_is_pruned, "pruning")
    assert sorted(deleted) == [3, 4]
    await requester.all_registered(await publish(requester, range(25, 26)))


async def test_a_resource_that_changes_its_partition_is_not_overtaken(rig):
    """Its older request is under way in the old partition when a router with another number begins."""
    released = asyncio.Event()
    pages = {page: Resource(None, "messenger", page) for page in PAGES}
    page = next(
        page for page in PAGES if partition_of(pages[page], 2) != partition_of(pages[page], PARTITIONS)
    )
    requester = await rig.start(partitions=2)
    rig.sandbox.faults.add(first_call_waits(released))
    ids = await publish(requester, range(1), [page])
    await until(lambda: rig.sandbox.history.registration_calls, "the older request's call")
    before, events, settings = rig.services[0], Events(), rig.settings(partitions=PARTITIONS)
    await rig.start_worker(settings, events)
    before.stop()
    await until(lambda: not before.intake.subscription, "the end of the old router")
    ids += await publish(requester, range(1, 2), [page])

    async def all_but_one_are_settled() -> bool:
        state = await read_partition_state(settings)
        settled = {number for number, barrier in state.barriers.items() if barrier.epoch == state.epoch}
        return settled == set(range(1, PARTITIONS + 1)) - {partition_of(pages[page], 2)}

    await until(all_but_one_are_settled, "the barriers in the other partitions")
    routes = events.of("epoch_began")
    released.set()
    await requester.all_registered(ids)
    assert (told(rig), routes) == ({page: [0, 1]}, [])


async def test_a_dated_request_in_its_new_partition_undoes_nothing_newer(rig, monkeypatch):
    """The worker there has read the journal before the newer one was registered, in the old partition."""
    owners: dict[int, str] = {}
    monkeypatch.setattr(members, "weight", lambda worker, partition: owners.get(partition) == worker)

    def home(page: str, partitions: int) -> int:
        return partition_of(Resource(None, "messenger", page), partitions)

    moves = next(page for page in PAGES if (home(page, 2), home(page, 3)) == (1, 2))
    stays = next(page for page in PAGES if (home(page, 2), home(page, 3)) == (2, 2))
    requester = await rig.requester_for(rig.settings(partitions=2))
    router = await rig.start_worker(rig.settings(partitions=2), tells_status=True)
    old, new = [await rig.start_worker(rig.settings(partitions=3), tells_status=True) for _ in range(2)]
    owners |= {1: old.name, 2: new.name, 3: old.name}
    await requester.all_registered(await publish(requester, range(1), [stays]))
    await until(lambda: new.partitions.taken == [2] and 1 in old.partitions.taken, "the spread")
    dated = {AS_OF_HEADER: "2026-11-01T00:00:00Z"}
    assert (await requester.ask(messenger(stays), headers=dated))["status"] == "superseded"
    newer = await requester.ask(messenger(moves, "newer"))
    await rig.stop_worker(router)
    reply = await requester.ask(messenger(moves, "older"), headers=dated)
    assert (reply["status"], reply.get("supersededBy")) == ("superseded", newer["requestId"])
    assert rig.held(moves) == "newer"


async def test_a_new_routers_times_are_above_those_of_a_worker_that_ended(rig, monkeypatch):
    """Its clock was a minute ahead, and another worker has written the last entry of the journal."""
    owners: dict[int, str] = {}
    monkeypatch.setattr(members, "weight", lambda worker, partition: owners.get(partition) == worker)
    homes = {partition_of(Resource(None, "messenger", page), 2): page for page in PAGES}
    settings, released = rig.settings(partitions=2), asyncio.Event()
    requester = await rig.requester_for(settings)
    ahead, _, other = [await rig.start_worker(settings, tells_status=True) for _ in range(3)]
    ahead.tools.clock._wall_clock = lambda: timestamps.now() + 60_000_000
    owners |= {1: ahead.name, 2: other.name}
    await requester.all_registered(await publish(requester, range(1), [*homes.values()]))
    await until(lambda: ahead.partitions.taken == [1] and other.partitions.taken == [2], "the spread")
    rig.sandbox.faults.add(first_call_waits(released))
    waiting = await requester.publish(messenger(homes[2]))
    await until(lambda: len(rig.sandbox.history.registration_calls) == 3, "the call that waits")
    older = await requester.ask(messenger(homes[1]))
    released.set()
    await requester.reply(waiting)
    await rig.lose_worker(ahead)
    newer = await requester.ask(messenger(homes[1]))
    assert newer["receivedAt"] > older["receivedAt"]


async def test_what_a_router_publishes_behind_its_successors_barrier_is_ignored(rig):
    requester = await rig.start(partitions=PARTITIONS)
    await requester.all_registered(await publish(requester, range(2), PAGES[:1]))
    home = partition_of(Resource(None, "messenger", PAGES[0]), PARTITIONS)
    late = aio_pika.Message(messenger(PAGES[0], "version 0"), headers=LATE)
    await requester.channel.default_exchange.publish(late, f"{requester.prefix}.requests.{home}")
    await until(lambda: rig.events.of("late_request_ignored"), "the late request")
    await requester.all_registered(await publish(requester, range(2, 3), PAGES[:1]))
    assert told(rig) == {PAGES[0]: [0, 1, 2]}
    assert rig.events.of("late_request_ignored") == [home]


async def test_a_worker_that_takes_a_partition_over_knows_the_barriers_of_before(rig):
    requester = await rig.start(partitions=PARTITIONS)
    await requester.all_registered(await publish(requester, range(2), PAGES[:1]))
    await rig.stop_first()
    home = f"{requester.prefix}.requests.{partition_of(Resource(None, 'messenger', PAGES[0]), PARTITIONS)}"
    late = aio_pika.Message(messenger(PAGES[0], "version 0"), headers=LATE)
    await requester.channel.default_exchange.publish(late, home)
    await rig.start_worker(rig.settings(partitions=PARTITIONS))
    await requester.all_registered(await publish(requester, range(2, 3), PAGES[:1]))
    assert told(rig) == {PAGES[0]: [0, 1, 2]}


@pytest.mark.parametrize("partitions", [1, PARTITIONS])
async def test_no_mark_that_a_publisher_makes_up_means_anything(rig, partitions):
    forged = {
        **dict.fromkeys(ROUTED_HEADERS, 2**40),
        "x-ott-received-at": "2020-01-01T00:00:00Z",
        "x-ott-request-id": "forged",
        "x-ott-replay-force": True,
        "x-ott-replay-count": 7,
        "x-ott-sealed": "key",
        "x-ott-anything": "else",
        "x-ott-letter": "0123456789abcdef",
    }
    requester = await rig.start(partitions=partitions)
    for headers in (forged, {EPOCH_HEADER: 2**40}, {}):
        ids = [
            await requester.publish(body, key=key, type=BARRIER_TYPE, headers=headers, message_id="m")
            for body in (messenger(PAGES[0]), b"{}", b"\0ott-sealed-2\0junk")
            for key in (None, REQUEST_KEY)
        ]
        replies = [await requester.reply(each) for each in ids]
        assert [reply["status"] for reply in replies] == ["registered"] * 2 + ["rejected"] * 4
        assert {reply["requestId"] for reply in replies} == {"m"}
        assert all(reply["receivedAt"] > "2026" for reply in replies)
    for letter in await requester.take_all("dead", 12):
        assert letter.headers["x-ott-request-id"] == "m"
        assert letter.headers["x-ott-received-at"] > "2026"
        assert letter.headers["x-ott-letter"] != "0123456789abcdef"
        written = {"x-ott-request-id", "x-ott-received-at", "x-ott-letter"}
        assert (forged.keys() - written).isdisjoint(letter.headers)
    assert (await requester.ask(messenger(PAGES[1])))["status"] == "registered"


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_a_copy_that_a_publisher_puts_into_our_queues_bears_no_marks(rig, header):
    requester = await rig.start(partitions=PARTITIONS)
    names = [f"requests.{number}" for number in range(1, PARTITIONS + 1)]
    copies = {header: [f"{requester.prefix}.{name}" for name in (*names, "partitions", "status", "journal")]}
    for marks in ({EPOCH_HEADER: 2**40}, dict.fromkeys(ROUTED_HEADERS, 2**62)):
        reply = await requester.ask(messenger(PAGES[0]), headers=copies | marks)
        assert reply["status"] == "registered"
    await requester.all_registered(await publish(requester, range(2)))


async def test_a_record_that_no_worker_wrote_is_skipped(rig):
    requester = await rig.start(partitions=PARTITIONS)
    await requester.ask(messenger())
    documents = [
        {"takes": 5},
        {"by": "x", "mark": "m", "claim": 10**9},
        {"by": "x", "mark": "m", "settled": {"9" * 5000: [1, 1]}},
        {"by": "x", "mark": ["m"], "settled": {"1": [None, 1]}},
        {"by": "x", "mark": "m", "settled": {"1": [2**63, 1]}},
    ]
    bodies = [json.dumps(document).encode() for document in documents]
    for body in (*bodies, b"[]", b"[" * 100_000, b"\xff", b"x\n" * 100_000, b""):
        message = aio_pika.Message(body)
        await requester.channel.default_exchange.publish(message, f"{requester.prefix}.partitions")
    bad = len(documents) + 4  # b"" is a mark
    await until(lambda: len(rig.events.of("record_skipped")) == bad, "the skipped records")
    await requester.all_registered(await publish(requester, range(1)))
    await rig.start_worker(rig.settings(partitions=PARTITIONS))
    await rig.stop_first()
    await requester.all_registered(await publish(requester, range(1, 2)))


async def test_the_backlog_stays_in_the_requests_queue(rig):
    rig.sandbox.faults.add(Latency(path="registration", seconds=4))
    requester = await rig.start(partitions=2, prefetch=5)
    pages = [str(10**9 + number) for number in range(60)]
    ids = await publish(requester, range(1), pages)

    async def waiting() -> list[int]:
        names = ("requests", "requests.1", "requests.2")
        return [await requester.depth(name) for name in names]

    await until(lambda: len(rig.sandbox.history.registration_calls) >= 10, "the calls of both partitions")
    await asyncio.sleep(0.5)  # long enough to overfill them
    requests, *partitions = await waiting()
    assert all(depth <= 5 for depth in partitions)
    assert requests >= 60 - 5 - 2 * 2 * 5
    rig.sandbox.heal()
    await requester.all_registered(ids)


async def test_where_a_full_partition_refuses_some_the_latest_is_the_last(rig):
    requester = await rig.start(partitions=2)
    await rig.stop_first()
    limits = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    limits |= {"x-overflow": "reject-publish", "x-max-length": 1}
    for number in (1, 2):
        name = f"{requester.prefix}.requests.{number}"
        await (await requester.channel.get_queue(name)).delete(if_unused=False, if_empty=False)
        await requester.channel.declare_queue(name, durable=True, arguments=limits)
    rig.sandbox.faults.add(Latency(path="registration", seconds=0.05))
    await rig.start(partitions=2, prefetch=8, declare=False, coalesce_after=0)
    await requester.all_registered(await publish(requester, range(40), PAGES[:4]))
    assert rig.events.of("publish_turned_down")
    for versions in told(rig).values():
        assert versions[-1] == 39
        steps = enumerate(pairwise(versions), start=1)
        assert all(before in versions[place:] for place, (before, after) in steps if after < before)


async def test_a_partition_that_comes_into_use_just_before_its_deletion_is_kept(rig, monkeypatch):
    requester = await rig.start(partitions=2)
    await requester.all_registered(await publish(requester, range(1)))
    names = Topology(requester.prefix)
    arguments = names.arguments(names.partition(3), rig.settings())
    await requester.channel.declare_queue(names.partition(3), durable=True, arguments=arguments)
    real_look, more = pruning.look, iter([4])

    async def look_and_begin(connection: Connection, queue: str) -> QueueState:
        seen = await real_look(connection, queue)
        for number in more:
            await rig.stop_first()
            await rig.start_worker(rig.settings(partitions=number))
            await requester.all_registered(await publish(requester, range(1, 2)))
        return seen

    monkeypatch.setattr(pruning, "look", look_and_begin)
    (kept,) = [each async for each in prune(rig.settings(partitions=2)) if each.partition == 3]
    assert "a worker has just begun" in kept.kept_because
    await requester.all_registered(await publish(requester, range(2, 4)))
    assert told(rig) == {page: list(range(4)) for page in PAGES}


async def test_without_the_routers_claim_no_partition_is_pruned(rig):
    """The stream that holds it was deleted, or is trimmed."""
    requester = await rig.start(partitions=2)
    await requester.ask(messenger())
    await requester.channel.queue_delete(f"{requester.prefix}.partitions")
    pruned = [each async for each in prune(rig.settings(partitions=1))]
    assert [each.partition for each in pruned] == [2, 1]
    assert all("does not show whether a worker uses it" in each.kept_because for each in pruned)


async def test_a_rate_limit_is_for_all_workers_together_while_the_number_changes(rig):
    """A worker with one partition beside one that drains four; then it takes them all."""
    limit, pages = 20, [str(10**9 + number) for number in range(80)]
    settings = rig.settings(partitions=PARTITIONS, rate_limit=limit)
    requester = await rig.requester_for(settings)
    four = await rig.start_worker(settings, tells_status=True)
    await requester.all_registered(await publish(requester, range(1), pages[:PARTITIONS]))
    while True:
        one = await rig.start_worker(rig.settings(partitions=1, rate_limit=limit), tells_status=True)
        if 0 < sum(weight(one.name, n) > weight(four.name, n) for n in range(1, PARTITIONS + 1)) < PARTITIONS:
            break
        await rig.stop_worker(one)  # its name has drawn all or none of them
    await until(lambda: one.partitions.taken and four.partitions.taken, "both to have partitions")
    before = len(rig.sandbox.history.registration_calls)
    ids = await asyncio.gather(*(requester.publish(messenger(page)) for page in pages))
    await until(lambda: len(requester.order) > before + len(pages) / 2, "half of the replies")
    await rig.stop_worker(four)
    await requester.all_registered(ids)
    calls = sorted(call.arrived_at for call in rig.sandbox.history.registration_calls[before:])
    seconds = [later - earlier for earlier, later in zip(calls, calls[limit:], strict=False)]
    assert min(seconds) > 0.7, "more than the limit in a second"
    assert calls[-1] - calls[0] > 0.9 * len(pages) / limit


async def test_a_worker_without_partitions_notices_when_others_have_brought_some(rig):
    plain = await rig.start_worker(rig.settings(partitions=1))
    requester = await rig.requester_for(plain.settings)
    divided = await rig.start_worker(rig.settings(partitions=PARTITIONS))
    await rig.stop_worker(plain)
    plain = await rig.start_worker(rig.settings(partitions=1))
    await requester.all_registered(await publish(requester, range(2)))
    await rig.stop_worker(divided)
    await requester.all_registered(await publish(requester, range(2, 4)))
    assert plain.partitions.in_use
    assert told(rig) == {page: list(range(4)) for page in PAGES}


async def test_a_partition_that_was_pruned_is_used_again(rig):
    """By a worker that has come and gone, while another one runs on."""
    requester = await rig.start(partitions=PARTITIONS)
    await requester.all_registered(await publish(requester, range(1)))
    two = await rig.start_worker(rig.settings(partitions=2))
    await rig.stop_first()
    await requester.all_registered(await publish(requester, range(1, 2)))

    async def all_is_pruned() -> bool:
        pruned = [each async for each in prune(rig.settings(partitions=2))]
        return not pruned and len(two.partitions.places) == 2

    await until(all_is_pruned, "pruning")
    assert two.partitions.share == 1.0
    four = await rig.start_worker(rig.settings(partitions=PARTITIONS))
    await _end_epoch(two)
    await requester.all_registered(await publish(requester, range(2, 3)))
    await rig.stop_worker(four)
    await requester.all_registered(await publish(requester, range(3, 4)))
    assert [partitions for _, partitions, _ in rig.events.of("epoch_began")] == [4, 2, 4, 2]
    assert told(rig) == {page: list(range(4)) for page in PAGES}


async def _end_epoch(service: Service) -> None:
    """The router loses its connection for publishing, and its role."""
    router = service.intake._current
    assert isinstance(router, Router)
    assert router._channel is not None
    router._channel.connection.abort()
    await until(router.subscription.ended.done, "the end of the epoch")


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_partition_that_was_deleted_holds_up_nobody(rig, monkeypatch, partitions):
    """It is declared at once, and where the worker has no partitions of its own it does without."""
    monkeypatch.setattr(topology, "CHECK_INTERVAL", 1000.0)
    requester = await rig.start(partitions=2)
    await rig.start_worker(rig.settings(partitions=partitions))
    await rig.stop_first()
    await requester.all_registered(await publish(requester, range(1)))
    for number in (1, 2):
        await requester.channel.queue_delete(f"{requester.prefix}.requests.{number}")
    await requester.all_registered(await publish(requester, range(1, 2)))


async def test_a_barrier_that_is_deleted_with_its_queue_is_sent_again(rig, monkeypatch):
    monkeypatch.setattr("worker.partitions.router.BARRIER_WAIT", 1.0)
    homes = {partition_of(Resource(None, "messenger", page), 2): page for page in PAGES}
    released = asyncio.Event()
    requester = await rig.start(partitions=2)
    rig.sandbox.faults.add(first_call_waits(released))
    await publish(requester, range(1), [homes[2]])
    await until(lambda: rig.sandbox.history.registration_calls, "a call, behind which the barrier waits")
    await _end_epoch(rig.services[0])
    ids = await publish(requester, range(1), [homes[1]])
    known = rig.services[0].partitions._log
    await until(lambda: known.barrier(1).epoch > known.barrier(2).epoch, "the other barrier")
    await requester.channel.queue_delete(f"{requester.prefix}.requests.2")
    await until(lambda: rig.events.of("partition_left"), "the end of the partition")
    released.set()
    await requester.all_registered(ids)


async def test_a_record_that_was_deleted_before_it_was_read_is_written_again(rig, monkeypatch):
    monkeypatch.setattr(log, "READ_TIMEOUT", 0.5)
    requester = await rig.start(partitions=2)
    worker = rig.services[0]
    unread = log.PartitionLog("another worker", worker.tools)
    writing = asyncio.create_task(unread.catch_up())
    await until(lambda: worker.partitions._log.state.next_offset, "the record")
    await requester.channel.queue_delete(f"{requester.prefix}.partitions")
    following = asyncio.create_task(unread.follow())
    await until(writing.done, "the record's reading")
    await cancel_all(following)


async def test_what_waits_in_partitions_is_found_without_the_log(rig):
    """The stream was deleted, and the new worker has fewer of its own."""
    requester = await rig.start(partitions=PARTITIONS)
    await rig.stop_first()
    waiting = aio_pika.Message(messenger(), correlation_id="waiting", reply_to=requester.queue.name)
    await requester.channel.default_exchange.publish(waiting, f"{requester.prefix}.requests.{PARTITIONS}")
    await requester.channel.queue_delete(f"{requester.prefix}.partitions")
    await rig.start_worker(rig.settings(partitions=2))
    await requester.all_registered(["waiting"])


async def test_a_partition_that_is_used_is_not_pruned(rig):
    requester = await rig.start(partitions=PARTITIONS)
    await requester.all_registered(await publish(requester, range(1)))
    pruned = [each async for each in prune(rig.settings(partitions=2))]
    assert [each.partition for each in pruned] == [4, 3]
    assert all("uses it" in each.kept_because for each in pruned)
