"""Which worker is to have which partition, and a request on its way through one (contract §10)."""

from statistics import mean
from typing import Any

import pytest

from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties, build
from worker.broker.request_message import request_id
from worker.broker.requirements import workers_rights
from worker.contract.settlement import Resource
from worker.contract.words import BARRIER_TYPE, REPLAY_KEY, REQUEST_KEY, ROUTED_HEADERS
from worker.partitions import worker as members
from worker.partitions.message import arrival_of, as_it_came, barrier, epoch_of, is_barrier, routed
from worker.partitions.router import partition_of
from worker.partitions.worker import Members, weight
from worker.settings import load_settings

PARTITIONS = range(1, 65)


def owners(workers: list[str]) -> dict[int, str]:
    return {partition: max(workers, key=lambda worker: weight(worker, partition)) for partition in PARTITIONS}


def test_a_worker_that_joins_takes_only_what_it_wins_and_nothing_moves_between_the_others():
    before, after = owners(["a", "b", "c"]), owners(["a", "b", "c", "d"])
    moved = {partition for partition in PARTITIONS if before[partition] != after[partition]}
    assert moved == {partition for partition in PARTITIONS if after[partition] == "d"}
    assert 0 < len(moved) < len(PARTITIONS) / 2


def record(worker: str, version: str = "1.2.0", state: str = "standby") -> dict[str, Any]:
    return {
        "worker": worker,
        "version": version,
        "at": "2026-11-23T12:00:00Z",
        "state": state,
        "gate": {"state": "open"},
        "inFlight": 0,
        "ratePerSecond": 0.0,
        "reconnects": 0,
    }


def test_the_workers_that_are_heard_of_agree_on_the_owners():
    names = ["a", "b", "c"]
    workers = [Members(name, "status") for name in names]
    for each in workers:
        for name in names:
            each.observe(record(name))
    for partition in PARTITIONS:
        assert {each.owner(partition)[0] for each in workers} == {owners(names)[partition]}


@pytest.mark.parametrize("state", ["draining", "stopped"])
def test_a_worker_that_leaves_owns_nothing_at_once(state):
    workers = Members("a", "status")
    workers.observe(record("b"))
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a", "b"}
    workers.observe(record("b", state=state))
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a"}


def test_a_worker_that_is_silent_owns_nothing_after_a_while(monkeypatch):
    workers = Members("a", "status")
    workers.observe(record("b"))
    monkeypatch.setattr(members, "SILENT_AFTER", -1.0)
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a"}


def test_consumers_of_earlier_releases_have_priorities():
    workers = Members("a", "status")
    workers.observe(record("b"))
    assert not workers.have_priorities
    workers.observe(record("c", version="1.1.0"))
    assert workers.have_priorities


def test_resources_spread_evenly_over_the_partitions():
    counts = dict.fromkeys(range(1, 9), 0)
    for number in range(8000):
        counts[partition_of(Resource(None, "messenger", str(number)), 8)] += 1
    assert max(counts.values()) / mean(counts.values()) < 1.1


def test_account_platform_and_id_all_choose_the_partition_and_do_not_run_into_each_other():
    resources = [
        Resource(None, "line", "1"),
        Resource("1", "line", ""),
        Resource(None, "line1", ""),
        Resource(None, "messenger", "1"),
        Resource("1", "line", "1"),
    ]
    assert len({partition_of(resource, 10**9) for resource in resources}) == len(resources)


@pytest.mark.parametrize(
    ("partitions", "names"), [(1, set()), (2, {"ott.partitions", "ott.requests.1", "ott.requests.2"})]
)
def test_a_worker_reads_and_declares_its_partitions(partitions, names):
    rights = workers_rights(load_settings(prefix="ott", partitions=partitions))
    for verb in ("read", "configure"):
        of_verb = {right.name for right in rights if right.verb == verb}
        assert {name for name in of_verb if "partitions" in name or name[-1].isdigit()} == names


ENTRY, QUEUE = "ott", "ott.requests.3"


def delivery(properties: Properties, exchange: str = "", key: str = "ott.requests") -> Delivery:
    return Delivery(7, b"{}", properties, False, 0.0, exchange, key)


def through_a_partition(given: Delivery) -> Delivery:
    """What the partition's worker makes of it; the publisher gives an id to what has none."""
    message = routed(given, QUEUE, 5, 1_000_000, ENTRY)
    properties = message.properties
    if not properties.message_id:
        properties = properties.with_text("message_id", "fresh")
    there = Delivery(9, message.body, properties, False, 0.0, message.exchange, message.routing_key)
    assert (epoch_of(properties), arrival_of(properties)) == (5, 1_000_000)
    assert not is_barrier(properties)
    return as_it_came(there, ENTRY)


@pytest.mark.parametrize("message_id", ["m1", None])
def test_a_request_comes_out_as_it_went_in(message_id):
    given = delivery(
        build(message_id=message_id, correlation_id="c", reply_to="r", headers={"x-ott-account-id": "12"})
    )
    came = through_a_partition(given)
    assert came.properties.encoded() == given.properties.encoded()
    assert (came.body, came.tag) == (given.body, 9)
    assert request_id(came) == request_id(given)


@pytest.mark.parametrize(
    ("exchange", "key", "believed"),
    [(ENTRY, REPLAY_KEY, REPLAY_KEY), (ENTRY, REQUEST_KEY, REQUEST_KEY), ("", REPLAY_KEY, REQUEST_KEY)],
)
def test_only_what_came_by_the_replay_key_counts_as_a_replay(exchange, key, believed):
    came = through_a_partition(delivery(build(message_id="m"), exchange, key))
    assert (came.exchange, came.routing_key) == (ENTRY, believed)


def test_marks_that_a_requester_made_up_are_not_believed():
    made_up = dict.fromkeys(ROUTED_HEADERS, 99) | {"x-ott-received-at": "2020-01-01T00:00:00Z"}
    properties = build(message_id="m", type=BARRIER_TYPE, headers=made_up)
    came = through_a_partition(delivery(properties))
    assert list(came.properties.header_names()) == []
    assert came.properties.text("type") is None  # by which release 1.1.0 knows a barrier
    assert came.routing_key == REQUEST_KEY


def test_what_would_change_the_order_or_the_way_is_left_behind():
    raw = build(message_id="m", expiration="10", user_id="u", headers={"CC": "x", "x-delivery-count": 3})
    given = delivery(Properties({**raw._raw, "priority": b"\x09"}))
    came = through_a_partition(given).properties
    assert [came.raw(name) for name in ("priority", "expiration")] == [b"", b""]
    assert list(came.header_names()) == []


def test_a_barrier_is_told_from_a_request():
    message = barrier(QUEUE, 8)
    assert is_barrier(message.properties)
    assert epoch_of(message.properties) == 8
