"""What is shown of a dead letter: values that are known to be public; of all else the type and the length."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from tests.rig import MESSENGER, messenger
from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties, build
from worker.dead_letters.letter import parse_letter
from worker.dead_letters.view import as_text, view


def shown(body: bytes, properties: Properties | None = None, *, reveal: bool = False) -> dict:
    delivery = Delivery(1, body, properties or Properties(), redelivered=False, arrived_at=0.0)
    return view(parse_letter(delivery, None), reveal=reveal)


def registration(**attributes: object) -> bytes:
    return json.dumps({**MESSENGER, "ottPlatformAttributes": attributes}).encode()


def test_public_fields_are_shown_and_of_secrets_the_type_and_the_length() -> None:
    body = shown(messenger("p", "a name", applicationSecret="0123456789"))["body"]["ottPlatformAttributes"]
    assert (body["pageId"], body["pageName"], body["isActive"]) == ("p", "a name", True)
    assert body["applicationSecret"] == "<string, 10 characters>"


@pytest.mark.parametrize(
    ("value", "described"),
    [
        ("canary", "<string, 6 characters>"),
        ("c", "<string, 1 character>"),
        (7, "<number>"),
        (True, "<boolean>"),
        ({"canary": "canary"}, "<object, 1 field>"),
        (["canary", 2], "<list, 2 items>"),
        (None, None),
        ("", ""),
    ],
)
def test_a_field_that_no_platform_has_is_described(value: object, described: object) -> None:
    body = json.dumps({"note": value, "ottPlatformAttributes": {"pageAcessToken": value}}).encode()
    assert shown(body)["body"] == {
        "note": described,
        "ottPlatformAttributes": {"pageAcessToken": described},
    }
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
def test_of_a_url_the_query_and_the_user_are_not_shown(url: str, seen: str) -> None:
    assert shown(registration(endpointUrl=url))["body"]["ottPlatformAttributes"]["endpointUrl"] == seen


def test_a_secret_of_the_body_is_masked_where_a_public_field_repeats_it() -> None:
    body = registration(pageName="it is canary/1 here", pageAccessToken="canary/1")
    properties = build(correlation_id="x canary%2F1", headers={"x-ott-error": "10005 canary\\/1"})
    assert "canary" not in json.dumps(shown(body, properties))


def test_our_headers_and_the_brokers_are_shown_and_others_described() -> None:
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
        "x-ott-note": "<string, 6 characters>",
        "x-delivery-count": 2,
        "traceparent": "<string, 6 characters>",
        "x-death": [{**death, "note": "<string, 6 characters>"}],
    }


NAMES = "reason error attempts received-at dead-at request-id replay-count account-id".split()  # noqa: SIM905
HEADERS = st.dictionaries(
    st.sampled_from([*(f"x-ott-{name}" for name in NAMES), "x-death", "other"]), st.binary(max_size=12)
)


@given(body=st.binary(max_size=60), headers=HEADERS, raw=st.binary(max_size=20))
def test_no_letter_stops_the_commands_whatever_it_holds(body: bytes, headers: dict, raw: bytes) -> None:
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
def test_a_death_that_is_none_is_told_as_far_as_it_goes(death: object) -> None:
    properties = Properties({"headers": encode.field_table({"x-death": death})})
    assert isinstance(shown(b"{}", properties)["reason"], str)
