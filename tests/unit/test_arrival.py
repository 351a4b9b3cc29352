"""How a request is read from a delivery: its id, its account, its time."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from tests.rig import messenger
from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties, build
from worker.broker.encryption import Encryptor
from worker.contract.registration import Rejection
from worker.contract.settlement import Resource
from worker.contract.timestamps import ArrivalClock, microseconds, text_of
from worker.events import EventListener
from worker.pipeline.request import Request, RequestParser
from worker.settings import load_settings

PREFIX = "ott.registration"
NOW = 2_000_000_000_000_000


def delivery(body: bytes = b"{}", properties: Properties | None = None, key: str = "request") -> Delivery:
    given = properties or Properties()
    return Delivery(1, body, given, redelivered=False, arrived_at=0.0, exchange=PREFIX, routing_key=key)


def received(
    message: Delivery, *, now: int = NOW, events: EventListener | None = None, **settings: Any
) -> Request:
    given = load_settings(prefix=PREFIX, **settings)
    return RequestParser(given, Encryptor(given), events or EventListener()).parse(message, now)


def test_without_one_the_id_is_derived_and_the_same_for_a_redelivery():
    first, again = (received(delivery(b"{}", build(correlation_id="c"))).id for _ in range(2))
    other = received(delivery(b"{}", build(correlation_id="d"))).id
    assert first == again != other
    assert len(first) == 32


@pytest.mark.parametrize(
    ("headers", "account"),
    [
        ({}, "default"),
        ({"x-ott-account-id": "42"}, "42"),
        ({"x-ott-account-id": 42}, "42"),
        ({"x-ott-account-id": " 42"}, "42"),
    ],
)
def test_the_account_comes_from_the_header_or_the_setting(headers, account):
    request = received(delivery(messenger("p"), build(headers=headers)), mc_account_id="default")
    assert request.resource == Resource(account, "messenger", "p")


@pytest.mark.parametrize(
    "value", [True, 1.5, None, [1], {"a": 1}, bytearray(b"\xff"), "x" * 100, datetime(2026, 1, 1, tzinfo=UTC)]
)
def test_an_account_header_that_is_no_account_is_refused(value):
    headers = Properties({"headers": encode.field_table({"x-ott-account-id": value})})
    assert received(delivery(messenger("p"), headers)).parsed.reason == "invalid"


def test_the_clock_never_repeats_or_goes_back():
    times = iter([100, 100, 50, 200])
    clock = ArrivalClock(lambda: next(times))
    assert [clock.stamp() for _ in range(4)] == [100, 101, 102, 200]


OPERATORS = {
    "x-ott-received-at": text_of(1_000_000),
    "x-ott-request-id": "the-id",
    "x-ott-replay-count": 2,
    "x-ott-replay-force": True,
}


def test_a_replay_keeps_the_time_and_the_id_of_its_original():
    request = received(delivery(properties=build(headers=OPERATORS), key="replay"))
    assert (request.is_replay, request.received_at, request.id) == (True, 1_000_000, "the-id")


@pytest.mark.parametrize(
    ("exchange", "key"),
    [
        (PREFIX, "request"),
        ("", f"{PREFIX}.requests"),
        ("", "replay"),
        ("another", "replay"),
        (PREFIX, "Replay"),
    ],
)
def test_what_only_an_operator_may_say_is_believed_on_the_key_of_replays_alone(exchange, key):
    message = delivery(properties=build(headers=OPERATORS), key=key)
    message.exchange = exchange
    request = received(message)
    assert (request.is_replay, request.received_at) == (False, NOW)
    assert request.id != "the-id"


@pytest.mark.parametrize(
    ("given", "true_at"),
    [
        (text_of(1_000_001), 1_000_001),
        ("1970-01-01T01:00:01.000001+01:00", 1_000_001),
        ("1970-01-01t00:00:01z", 1_000_000),
        ("1969-12-31T23:59:59Z", 0),
        ("2999-01-01T00:00:00Z", NOW),  # later than it arrived
    ],
)
def test_a_request_tells_when_it_was_true(given, true_at):
    request = received(delivery(properties=build(headers={"x-ott-as-of": given})))
    assert (request.as_of, request.true_at, request.received_at) == (true_at, true_at, NOW)


@pytest.mark.parametrize(
    "given",
    ["yesterday", "", "1970-01-01T00:00:01", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00+14:00", 5, True],
)
def test_a_time_that_cannot_be_read_is_ignored_and_told(given):
    told: list[str] = []
    events = EventListener()
    events.as_of_ignored = lambda request_id, _: told.append(request_id)
    message = delivery(properties=build(message_id="m", headers={"x-ott-as-of": given}))
    request = received(message, events=events)
    assert (request.as_of, request.true_at, told) == (None, NOW, ["m"])


def test_a_time_from_the_future_is_not_believed():
    properties = build(headers={"x-ott-received-at": "2999-01-01T00:00:00.000000Z"})
    assert received(delivery(properties=properties, key="replay"), now=7).received_at == 7


def test_a_sealed_body_opens_on_the_key_of_replays_alone():
    keys = f"one:{base64.b64encode(bytes(32)).decode()}"
    encryptor = Encryptor(load_settings(prefix=PREFIX, dead_letter_keys=keys))
    properties, sealed = encryptor.encrypt(build(headers=OPERATORS), messenger("p"))
    opened = received(delivery(sealed, properties, "replay"), dead_letter_keys=keys)
    assert opened.resource == Resource(None, "messenger", "p")
    assert opened.delivery.body == messenger("p")
    for closed in (
        received(delivery(sealed, properties), dead_letter_keys=keys),
        received(delivery(sealed, properties, "replay")),
    ):
        assert isinstance(closed.parsed, Rejection)
        assert (closed.parsed.reason, closed.parsed.errorcode) == ("invalid", 10004)


def test_a_body_that_was_not_kept_is_oversize():
    message = delivery(b"")
    message.dropped = 5_000_000
    request = received(message)
    assert isinstance(request.parsed, Rejection)
    assert (request.parsed.reason, request.parsed.errorcode) == ("oversize", 10004)
    assert request.id != received(delivery(b"")).id


@given(st.integers(0, 4 * 10**15))
def test_times_survive_their_text(moment):
    assert microseconds(text_of(moment)) == moment


@given(st.text())
def test_any_text_is_a_time_or_none(text):
    assert microseconds(text) is None or isinstance(microseconds(text), int)


@given(st.binary(max_size=200), st.binary(max_size=100), st.integers(0, 0xFFFF))
def test_any_bytes_are_received_without_an_exception(body, tail, flags):
    try:
        properties = Properties.parse(flags.to_bytes(2, "big") + tail)
    except ValueError:
        properties = Properties()
    assert received(delivery(body, properties)).id


@pytest.mark.parametrize("claim", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_beyond_the_years_that_can_be_written_is_no_time(claim):
    assert microseconds(claim) is None
    properties = build(headers={"x-ott-received-at": claim})
    assert received(delivery(properties=properties, key="replay")).received_at == NOW


def test_a_floor_that_no_worker_can_have_written_is_not_believed():
    clock = ArrivalClock(lambda: 100)
    clock.raise_floor(2**62)
    assert clock.stamp() == 100
