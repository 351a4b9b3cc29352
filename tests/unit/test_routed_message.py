"""A request on its way through a partition (contract §10)."""

import pytest

from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties, build
from worker.broker.request_message import request_id
from worker.contract.words import BARRIER_TYPE, REPLAY_KEY, REQUEST_KEY, ROUTED_HEADERS
from worker.partitions.message import (
    arrival_of,
    as_it_came,
    barrier,
    epoch_of,
    is_barrier,
    routed,
)

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
def test_a_request_comes_out_as_it_went_in(message_id: str | None) -> None:
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
def test_only_what_came_by_the_replay_key_counts_as_a_replay(exchange: str, key: str, believed: str) -> None:
    came = through_a_partition(delivery(build(message_id="m"), exchange, key))
    assert (came.exchange, came.routing_key) == (ENTRY, believed)


def test_marks_that_a_requester_made_up_are_not_believed() -> None:
    made_up = dict.fromkeys(ROUTED_HEADERS, 99) | {"x-ott-received-at": "2020-01-01T00:00:00Z"}
    properties = build(message_id="m", type=BARRIER_TYPE, headers=made_up)
    came = through_a_partition(delivery(properties))
    assert list(came.properties.header_names()) == []
    assert came.properties.text("type") is None  # by which release 1.1.0 knows a barrier
    assert came.routing_key == REQUEST_KEY


def test_what_would_change_the_order_or_the_way_is_left_behind() -> None:
    raw = build(message_id="m", expiration="10", user_id="u", headers={"CC": "x", "x-delivery-count": 3})
    given = delivery(Properties({**raw._raw, "priority": b"\x09"}))
    came = through_a_partition(given).properties
    assert [came.raw(name) for name in ("priority", "expiration")] == [b"", b""]
    assert list(came.header_names()) == []


def test_a_barrier_is_told_from_a_request() -> None:
    message = barrier(QUEUE, 8)
    assert is_barrier(message.properties)
    assert epoch_of(message.properties) == 8
