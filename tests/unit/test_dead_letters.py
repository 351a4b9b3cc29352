"""What a dead letter tells, what of it is believed, and what is shown: of secrets the type and the length."""

import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from tests.rig import MESSENGER, messenger
from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties, build
from worker.broker.encryption import Encryptor
from worker.contract.timestamps import SKEW, text_of
from worker.dead_letters.letter import Letter, is_brokers
from worker.dead_letters.replay import replayed
from worker.dead_letters.view import as_text, view
from worker.partitions.message import as_it_came, routed
from worker.settings import load_settings

NO_KEYS = Encryptor(load_settings())
NOON = 1_795_435_200_000_000


def letter(properties: Properties, body: bytes = messenger("p")) -> Letter:
    return Letter(Delivery(1, body, properties, redelivered=False, arrived_at=0.0), NO_KEYS, None)


def replay_of(letter: Letter) -> Properties:
    return replayed(letter, "ott.registration", letter.delivery.body, force=False).properties


def test_the_time_that_the_worker_has_stamped_is_that_of_the_replay():
    headers = {"x-ott-received-at": text_of(NOON), "x-ott-reason": "exhausted"}
    stamped = letter(build(headers=headers))
    assert (stamped.facts["receivedAt"], stamped.received_after) == (text_of(NOON), NOON)
    assert replay_of(stamped).header("x-ott-received-at") == text_of(NOON)


def test_the_time_of_another_clock_counts_as_early_as_that_clock_may_be_ahead():
    moment = datetime.fromtimestamp(NOON / 1_000_000, UTC)
    published = letter(build(timestamp=moment))
    assert (published.facts["receivedAt"], published.received_after) == (text_of(NOON), NOON - SKEW)
    assert replay_of(published).header("x-ott-received-at") == text_of(NOON - SKEW)


@pytest.mark.parametrize(
    ("key", "believed"), [("", True), ("replay", True), ("request", False), ("p.requests", False)]
)
def test_a_body_is_taken_for_encrypted_only_where_no_publisher_wrote_it(key, believed):
    """The worker publishes its letters without a routing key; the broker's keep the one that they came by."""
    keys = f"one:{base64.b64encode(bytes(32)).decode()}"
    encryptor = Encryptor(load_settings(dead_letter_keys=keys, prefix="p"))
    properties, sealed = encryptor.encrypt(build(headers={"x-ott-request-id": "r"}), messenger("page"))
    delivery = Delivery(
        1, sealed, properties, redelivered=False, arrived_at=0.0, exchange="p.dead", routing_key=key
    )
    opened = Letter(delivery, encryptor, None)
    assert opened.was_sealed == believed
    assert (opened.facts["resourceId"], opened.closed) == ("page" if believed else None, "")


FORGED = {
    "x-ott-account-id": "510000001",
    "x-ott-request-id": "another",
    "x-ott-received-at": text_of(NOON + 60_000_000),
    "x-ott-reason": "exhausted",
    "x-ott-error": "anything",
    "x-ott-replay-count": 7,
    "x-ott-replay-force": True,
    "x-own": "kept",
    "CC": "elsewhere",
}


def brokers_letter(routing_key: str, **headers: str | int | bool) -> Letter:
    properties = build(message_id="the-id", headers=FORGED | headers)
    delivery = Delivery(1, messenger("p"), properties, False, 0.0, "ott.registration.dead", routing_key)
    return Letter(delivery, NO_KEYS, None)


@pytest.mark.parametrize("key", ["request", "ott.registration.requests", "any key, with CC"])
def test_what_only_an_operator_may_say_is_not_believed_where_a_publisher_said_it(key):
    found = brokers_letter(key)
    assert is_brokers(found.delivery)
    told = [found.facts[name] for name in ("reason", "error", "replays")]
    assert (found.id, told) == ("the-id", ["unknown", "", 0])
    assert (found.facts["accountId"], found.received_after) == ("510000001", 0)
    replay = replay_of(found)
    assert (replay.header("x-ott-received-at"), replay.header("x-ott-replay-count")) == (text_of(0), 1)
    assert (replay.header("x-own"), replay.has_header("x-ott-replay-force")) == ("kept", False)
    assert not replay.has_header("CC")


def test_a_replay_that_the_broker_dead_lettered_keeps_its_first_time():
    found = brokers_letter("replay")
    assert (found.id, found.facts["replays"], found.received_after) == ("another", 7, NOON + 60_000_000)


@pytest.mark.parametrize(
    ("came_by", "time", "replays"), [("request", NOON, 0), ("replay", NOON + 60_000_000, 7)]
)
def test_a_letter_from_a_partition_has_the_time_of_its_router_unless_it_was_a_replay(came_by, time, replays):
    routed = {"x-ott-came-by": came_by, "x-ott-arrived-at": NOON, "x-ott-epoch": 3}
    found = brokers_letter("ott.registration.requests.2", **routed)
    assert (found.received_after, found.facts["replays"]) == (time, replays)
    assert not [name for name in routed if replay_of(found).has_header(name)]


def test_a_time_of_arrival_that_no_clock_can_tell_is_none():
    found = brokers_letter("ott.registration.requests.2", **{"x-ott-arrived-at": 2**62})
    assert (found.facts["receivedAt"], found.received_after) == (None, 0)


def test_an_id_that_a_router_made_up_is_not_the_requests():
    first, second = (
        brokers_letter(
            f"ott.registration.requests.{n}", **{"x-ott-no-message-id": True, "x-ott-came-by": "request"}
        )
        for n in (1, 2)
    )
    assert first.id == second.id != "the-id"


def test_what_the_worker_rejected_for_its_size_is_called_oversize():
    death = Properties({"headers": encode.field_table({"x-death": [{"reason": "rejected"}]})})
    assert letter(death).facts["reason"] == "oversize"


@pytest.mark.parametrize(
    ("routing_key", "exchange", "given", "is_believed"),
    [
        ("", "p.dead", "a123456789abcdef", True),
        ("", "p.dead", "anything else", False),
        ("request", "p.dead", "a123456789abcdef", False),
        ("replay", "p.dead", "a123456789abcdef", False),  # the header of an earlier letter
    ],
)
def test_a_letter_has_the_id_that_the_worker_drew_or_a_digest(routing_key, exchange, given, is_believed):
    def opened(body: bytes = b"{}", **headers: str | int) -> Letter:
        properties = build(headers={"x-ott-letter": given, **headers})
        delivery = Delivery(1, body, properties, False, 0.0, exchange, routing_key)
        return Letter(delivery, Encryptor(load_settings()), None)

    letter = opened()
    assert (letter.key == given) is is_believed
    assert re.fullmatch("[abcdf][0-9a-f]{15}", letter.key)
    looked_at, changed, other = opened(**{"x-delivery-count": 4}), opened(b"[]"), opened(**{"x-own": 1})
    assert looked_at.identity == letter.identity
    assert letter.identity[1] not in (changed.identity[1], other.identity[1])
    assert not replay_of(letter).has_header("x-ott-letter")


@pytest.mark.parametrize("partition", ["", ".2"])
def test_the_publishers_user_is_known_where_it_said_so(partition):
    asked = Delivery(1, b"{}", build(user_id="shop", headers={"x-ott-came-from": "forged"}), False, 0.0)
    if partition:
        message = routed(replace(asked, exchange="p", routing_key="request"), "p.requests.2", 1, NOON, "p")
        asked = Delivery(1, b"{}", message.properties, False, 0.0, "p.dead", "p.requests.2")
        assert as_it_came(asked, "p").properties.text("user_id") == "shop"
    assert Letter(asked, NO_KEYS, None).facts["userId"] == "shop"


def test_without_any_time_a_replay_counts_as_the_oldest_of_all():
    timeless = letter(build(message_id="m"))
    assert (timeless.facts["receivedAt"], timeless.received_after) == (None, 0)


def shown(body: bytes, properties: Properties | None = None, *, reveal: bool = False) -> dict:
    delivery = Delivery(1, body, properties or Properties(), redelivered=False, arrived_at=0.0)
    return view(Letter(delivery, NO_KEYS, None), reveal=reveal)


def registration(**attributes: object) -> bytes:
    return json.dumps({**MESSENGER, "ottPlatformAttributes": attributes}).encode()


def test_public_fields_are_shown_and_of_secrets_the_type_and_the_length():
    body = shown(messenger("p", "a name", applicationSecret="0123456789"))["body"]["ottPlatformAttributes"]
    assert (body["pageId"], body["pageName"], body["isActive"]) == ("p", "a name", True)
    assert body["applicationSecret"] == "<string of 10>"


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ("canary", "<string of 6>"),
        ("c", "<string of 1>"),
        (7, "<number>"),
        (True, "<boolean>"),
        ({"canary": "canary"}, "<object of 1>"),
        (["canary", 2], "<list of 2>"),
        (None, None),
        ("", ""),
    ],
)
def test_a_field_that_no_platform_has_is_described(value, described):
    body = json.dumps({"note": value, "ottPlatformAttributes": {"pageAcessToken": value}}).encode()
    assert shown(body)["body"] == {"note": described, "ottPlatformAttributes": {"pageAcessToken": described}}
    assert shown(body, reveal=True)["body"]["note"] == value


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("https://example.com/a/b", "https://example.com/a/b"),
        ("https://example.com/a?access_token=canary#x", "https://example.com/a?…"),
        ("https://me:canary@example.com/a", "https://example.com/a"),
        ("https://[canary", "***"),
    ],
)
def test_of_a_url_the_query_and_the_user_are_not_shown(url, seen):
    assert shown(registration(endpointUrl=url))["body"]["ottPlatformAttributes"]["endpointUrl"] == seen


def test_a_secret_of_the_body_is_masked_where_a_public_field_repeats_it():
    body = registration(pageName="it is canary/1 here", pageAccessToken="canary/1")
    properties = build(correlation_id="x canary%2F1", headers={"x-ott-error": "10005 canary\\/1"})
    assert "canary" not in json.dumps(shown(body, properties))


def test_a_secret_is_masked_also_where_an_id_is_cut_behind_its_beginning():
    secret = "8f3kd92hx7q0"
    body = registration(pageId="1" * 230 + secret + "1" * 30, pageAccessToken=secret)
    shown_id = letter(build(), body).shown()["resourceId"]
    assert secret[:4] not in shown_id


def test_our_headers_and_the_brokers_are_shown_and_others_described():
    death = {"reason": "expired", "queue": "q", "routing-keys": ["request"], "note": "canary"}
    table = {
        "x-ott-reason": "exhausted",
        "x-ott-attempts": 6,
        "x-ott-note": "canary",
        "x-delivery-count": 2,
        "traceparent": "canary",
        "x-death": [death],
    }
    headers = shown(b"{}", Properties({"headers": encode.field_table(table)}))["headers"]
    assert headers == {
        "x-ott-reason": "exhausted",
        "x-ott-attempts": 6,
        "x-ott-note": "<string of 6>",
        "x-delivery-count": 2,
        "traceparent": "<string of 6>",
        "x-death": [{**death, "note": "<string of 6>"}],
    }


NAMES = "reason error attempts received-at dead-at request-id replay-count account-id".split()  # noqa: SIM905
HEADERS = st.dictionaries(
    st.sampled_from([*(f"x-ott-{name}" for name in NAMES), "x-death", "other"]), st.binary(max_size=12)
)


@given(body=st.binary(max_size=60), headers=HEADERS, raw=st.binary(max_size=20))
def test_no_letter_stops_the_commands_whatever_it_holds(body, headers, raw):
    entries = b"".join(bytes((len(name),)) + name.encode() + value for name, value in headers.items())
    properties = Properties(
        {
            "headers": len(entries).to_bytes(4, "big") + entries,
            "message_id": bytes((len(raw),)) + raw,
            "timestamp": raw[:8].rjust(8, b"\0"),
        }
    )
    for reveal in (False, True):
        document = shown(body, properties, reveal=reveal)
        json.dumps(document)
        assert as_text(document)


@pytest.mark.parametrize(
    "death",
    ["no list", [], ["no table"], [{"reason": {"a": 1}, "time": "never"}], [{"reason": 7, "queue": []}]],
)
def test_a_death_that_is_none_is_told_as_far_as_it_goes(death):
    properties = Properties({"headers": encode.field_table({"x-death": death})})
    assert isinstance(shown(b"{}", properties)["reason"], str)
