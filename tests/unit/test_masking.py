"""What Marketing Cloud quotes of a request is masked, unless it is known to be public (contract §4)."""

import base64
import html
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig import LINE, MESSENGER, messenger
from worker.contract.platforms import PUBLIC_FIELDS, SECRET_FIELDS
from worker.contract.secrets import BEGINNING, SecretMask, without_query
from worker.marketing_cloud.answer import MESSAGE_LIMIT, masked, read_answer
from worker.marketing_cloud.response import Response

SECRET = "a-secret-of-some-length"
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in another case": str.upper,
    "in JSON": lambda secret: json.dumps(secret)[1:-1],
    "in JSON with all letters": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "in JSON with escaped slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "in a URL": quote,
    "in a URL altogether": lambda secret: quote(secret, safe=""),
    "in a form": quote_plus,
    "in HTML": html.escape,
    "in HTML by numbers": lambda secret: "".join(f"&#{ord(letter)};" for letter in secret),
    "in JSON in JSON": lambda secret: json.dumps(json.dumps(secret)[1:-1])[1:-1],
    "in JSON in a URL": lambda secret: quote(json.dumps(secret)[1:-1]),
    "in Python": lambda secret: repr(secret.encode())[2:-1],
    "in base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "in base64 behind something": lambda secret: base64.b64encode(b"id:" + secret.encode()).decode(),
    "in base64 for URLs": lambda secret: base64.urlsafe_b64encode(b"x" + secret.encode()).decode(),
    "in hexadecimal": lambda secret: secret.encode().hex(),
}


def answered(message: str, body: bytes) -> str:
    document = {"message": message, "documentation": message, "validationErrors": [{"message": message}]}
    answer = read_answer(Response(400, {}, json.dumps(document).encode()), datetime.now(UTC))
    answer = masked(answer, SecretMask.of_body(body))
    assert answer.message == answer.documentation == answer.errors[0].message
    return answer.message


def test_a_quoted_secret_is_masked() -> None:
    assert answered(f"Wrong: {SECRET}, {SECRET}!", messenger(pageAccessToken=SECRET)) == "Wrong: ***, ***!"


@pytest.mark.parametrize("left", range(3, len(SECRET)))
def test_a_secret_that_was_cut_off_with_a_long_message_is_masked(left: int) -> None:
    message = answered("x" * (MESSAGE_LIMIT - left) + SECRET, messenger(pageAccessToken=SECRET))
    assert SECRET[:left] not in message
    assert message.endswith("x***")


@pytest.mark.parametrize("left", range(9, 32))
def test_a_secret_that_was_cut_off_within_an_escape_is_masked(left: int) -> None:
    written = json.dumps('sö"rétwör/dé')[1:-1][:left]
    assert SecretMask(['sö"rétwör/dé'])("x " + written, was_cut=True) == "x ***"


def test_the_end_of_a_short_message_is_left_alone() -> None:
    message = f"It ends with {SECRET[:5]}"
    assert answered(message, messenger(pageAccessToken=SECRET)) == message


def test_the_beginning_of_a_secret_is_masked_wherever_it_stands() -> None:
    mask = SecretMask([SECRET])
    assert mask(f"Token {SECRET[:BEGINNING]}… is wrong, {SECRET[:-3]} too") == "Token ***… is wrong, *** too"


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize(
    "secret", ['pa"ss/wörd+ 4 <T>&\\ké', "03d537gg656gvkbe9b430f002e9c4517", "a%41&amp;b\\n-long-enough"]
)
def test_a_secret_is_masked_however_it_is_written(secret: str, written: Callable[[str], str]) -> None:
    text = SecretMask([secret])(f"Wrong: {written(secret)}, says the network")
    assert text.replace("***=", "***").replace("***=", "***") == "Wrong: ***, says the network"


@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=20, max_size=40),
    st.sampled_from([WRITTEN["in JSON"], WRITTEN["in a URL altogether"], WRITTEN["in HTML"], str, str.upper]),
)
def test_no_secret_survives(secret: str, written: Callable[[str], str]) -> None:
    quoted = written(secret)
    assert quoted not in SecretMask([secret])(f"[{quoted}]")


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5), st.booleans())
def test_any_text_can_be_masked(text: str, secrets: list[str], was_cut: bool) -> None:
    SecretMask(secrets)(text, was_cut=was_cut)


@given(st.text(max_size=200))
def test_without_secrets_a_text_stays_as_it_is(text: str) -> None:
    assert SecretMask([])(text) == text


def test_every_string_is_masked_whose_field_is_not_known_to_be_public() -> None:
    unknown = {
        "pageAccesToken": "misspelt-canary",
        "notes": ["listed-canary", {"deep": "nested-canary"}],
        "pin": 4711_0815,
        "pageId": {"in": "wrong-type-canary"},
    }
    body = json.loads(messenger(**unknown))
    body["outside"] = "outside-canary"
    body["EAABsbCS1234567890abcdef"] = 1
    message = (
        "misspelt-canary listed-canary nested-canary 47110815 wrong-type-canary outside-canary "
        "EAABsbCS1234567890abcdef"
    )
    assert answered(message, json.dumps(body).encode()) == " ".join(["***"] * 7)


def test_names_ids_flags_and_the_url_without_its_query_are_passed_on() -> None:
    url = "https://user:word@example.com/hook?token=query-canary&x=1#part-canary"
    body = messenger("1732555047025799", "SFMC Engineers", endpointUrl=url)
    said = "messenger page 1732555047025799 (SFMC Engineers) of 1093076390764037 at https://example.com/hook"
    assert answered(said, body) == said
    assert answered("query-canary and part-canary", body) == "*** and ***"
    assert without_query(url) == "https://example.com/hook?…"


def test_the_names_of_fields_are_passed_on() -> None:
    said = "PageId, pageAccessToken, callbackVerifyToken and ottPlatformAttributes must be provided"
    assert answered(said, messenger(page_id="x")) == said


def test_a_short_secret_is_masked_where_it_stands_alone() -> None:
    mask = SecretMask(["abc"])
    assert mask("abc abcd (abc) xabc") == "*** abcd (***) xabc"


def test_a_body_that_is_no_json_object_is_one_secret() -> None:
    assert SecretMask.of_body(b"not-json-canary")("It says not-json-canary") == "It says ***"
    assert SecretMask.of_body(b'["listed-canary"]')("It says listed-canary") == "It says ***"


@pytest.mark.parametrize(
    "value",
    [
        [f"{i:06d}" for i in range(100_000)],
        [f"commonbeginning{i:06d}" for i in range(40_000)],
        "&amp;" * 200_000,
        ["\\u0041" * 1000] * 100,
    ],
    ids=["many", "alike", "escapes", "long"],
)
def test_a_hostile_body_does_not_hold_the_worker_up(value: Any) -> None:
    body = messenger(notes=value)
    started = time.process_time()
    mask = SecretMask.of_body(body)
    for text in ("commonbeginning" * 66, "000017 " * 140, "&amp;" * 200):
        mask(text, was_cut=True)
    assert time.process_time() - started < 1


def test_each_known_attribute_is_either_public_or_secret() -> None:
    known = {*MESSENGER["ottPlatformAttributes"], *LINE["ottPlatformAttributes"]}
    assert known == PUBLIC_FIELDS | SECRET_FIELDS
    assert not PUBLIC_FIELDS & SECRET_FIELDS
