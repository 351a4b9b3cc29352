"""What Marketing Cloud quotes of a request is masked, unless it is known to be public (contract §4)."""

import base64
import html
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig import messenger
from worker.contract.secrets import SecretMask, split_url
from worker.marketing_cloud.answer import MESSAGE_LIMIT, Answer, masked, read_answer
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


TOKEN = "EAABwzLixnjYBAO4f8ZC9sKqPd71"
QUOTED: dict[str, Callable[[str], str]] = {
    "without its first characters": lambda secret: secret[5:],
    "without its last characters": lambda secret: secret[:-4],
    "cut by a line break": lambda secret: f"{secret[:9]}\n{secret[9:]}",
    "cut by spaces": lambda secret: " ".join(secret[at : at + 4] for at in range(0, len(secret), 4)),
    "cut by zero-width characters": "\u200b".join,
    "in base64 lines": lambda secret: base64.encodebytes(secret.encode() * 4).decode(),
    "as bytes": lambda secret: str(list(secret.encode())),
    "as bytes of UTF-16": lambda secret: str(list(secret.encode("utf-16-le"))),
    "as a hexadecimal dump": lambda secret: secret.encode().hex(" ", 2),
    "as escaped bytes": lambda secret: "".join(f"\\x{byte:02x}" for byte in secret.encode()),
    "in octal": lambda secret: " ".join(f"{byte:03o}" for byte in secret.encode()),
    "in groups of four bits": lambda secret: " ".join(
        f"{byte >> 4:04b} {byte & 15:04b}" for byte in secret.encode()
    ),
    "backwards": lambda secret: secret[::-1],
}


@pytest.mark.parametrize("quoted", QUOTED.values(), ids=QUOTED)
def test_no_piece_of_a_secret_is_shown_of_what_somebody_else_says(quoted):
    said = answered(f"Wrong: {quoted(TOKEN)}", messenger(pageAccessToken=TOKEN))
    assert set(said.removeprefix("Wrong: ")) <= set("*[]=\\\n\u200b ")


@pytest.mark.parametrize("left", range(3, len(SECRET)))
def test_a_secret_that_is_cut_off_with_a_long_message_is_masked(left):
    message = answered(
        ("word " * 200)[: MESSAGE_LIMIT - left - 1] + " " + SECRET, messenger(pageAccessToken=SECRET)
    )
    assert SECRET[:left] not in message
    assert message.endswith("***")


@pytest.mark.parametrize(
    "said",
    [
        "The page access token has expired (code 190, subcode 463). Try again on Monday, 01-Jan-24 10:00:00.",
        "The verify token is wrong: OAuthException, see https://developers.example.com/docs#tokens",
        "Die Größe ist ungültig; 無効なトークン",
        "HTTP 403: insufficient privileges",
    ],
)
def test_plain_words_and_short_numbers_are_passed_on(said):
    assert answered(said, messenger()) == said


@pytest.mark.parametrize("said", ["3f9a01bc77de", "EAABwzLixnj", "17325550470257990"])
def test_what_could_be_anybodys_secret_is_masked(said):
    assert answered(f"See {said}", messenger()) == "See ***"


def test_digits_of_a_secret_are_masked_though_they_are_few():
    assert SecretMask(["EAAB482913xyz0"]).upstream("Token with 482913 expired, code 190") == (
        "Token with *** expired, code 190"
    )


def test_our_own_text_is_only_searched_for_secrets():
    text = "Marketing Cloud did not answer: mc9f3k2.rest.example.com:41234 refused the connection."
    assert masked(Answer(None, text), SecretMask.of_body(messenger())).message == text


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize(
    "secret", ['pa"ss/wörd+ 4 <T>&\\ké', "03d537gg656gvkbe9b430f002e9c4517", "a%41&amp;b\\n-long-enough"]
)
def test_a_secret_is_masked_however_it_is_written(secret, written):
    quoted = written(secret)
    for text in (SecretMask([secret])(quoted), SecretMask([secret]).upstream(quoted)):
        assert "*" in text
        assert len(re.sub(r"[\W_]", "", text)) < 8


@given(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=20, max_size=40),
    st.sampled_from([WRITTEN["in JSON"], WRITTEN["in a URL altogether"], WRITTEN["in HTML"], str, str.upper]),
)
def test_no_secret_survives(secret, written):
    quoted = written(secret)
    assert quoted not in SecretMask([secret])(f"[{quoted}]")


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_any_text_can_be_masked(text, secrets):
    SecretMask(secrets)(text)
    SecretMask(secrets).upstream(text)


def test_every_string_is_masked_whose_field_is_not_known_to_be_public():
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


def test_empty_values_hide_no_secret_behind_them():
    assert SecretMask([""] * 600 + ["late-canary"])("It says late-canary") == "It says ***"
    assert SecretMask(["", *map(str, range(10_000, 10_600)), "late-canary"])("late-canary") == "***"


def test_names_ids_flags_and_the_url_without_its_query_are_passed_on():
    url = "https://user:word@example.com/hook?token=query-canary&x=1#part-canary"
    body = messenger("1732555047025799", "SFMC Engineers", endpointUrl=url)
    said = "messenger page 1732555047025799 (SFMC Engineers) of 1093076390764037 at https://example.com/hook"
    assert answered(said, body) == said
    assert answered("query-canary and part-canary", body) == "*** and ***"
    assert split_url(url)[0] == "https://example.com/hook?…"


def test_a_short_secret_is_masked_where_it_stands_alone():
    mask = SecretMask(["abc"])
    assert mask("abc abcd (abc) xabc") == "*** abcd (***) xabc"
    assert mask.upstream("abc abcd (abc) xabc") == "*** abcd (***) xabc"


def test_a_body_that_is_no_json_object_is_one_secret():
    assert SecretMask.of_body(b"not-json-canary")("It says not-json-canary") == "It says ***"
    assert SecretMask.of_body(b'["listed-canary"]')("It says listed-canary") == "It says ***"


@pytest.mark.parametrize(
    "value",
    [
        [f"{i:06d}" for i in range(100_000)],
        [f"commonbeginning{i:06d}" for i in range(40_000)],
        "&amp;" * 200_000,
        ["\\u0041" * 1000] * 100,
        ["ab" * 9_000],
        [f"{i:039d}" for i in range(490)],
        ["a" * 200] * 99,
        ["a" * 19_000],
    ],
    ids=["many", "alike", "escapes", "long", "twofold", "much", "one letter", "one letter throughout"],
)
def test_a_hostile_body_does_not_hold_the_worker_up(value):
    body = messenger(notes=value)
    started = time.process_time()
    mask = SecretMask.of_body(body)
    for text in ("commonbeginning" * 66, "000017 " * 140, "&amp;" * 200, "a" * 16_000):
        mask(text)
        mask.upstream(text)
    assert time.process_time() - started < 1


def test_many_pieces_of_many_secrets_take_no_longer():
    secrets = [f"{i * 7919:020b}{i:020x}" for i in range(400)]
    text = " z ".join(secret[6:14] for secret in secrets * 8)
    mask = SecretMask(secrets)
    started = time.process_time()
    assert "*" in mask(text)
    mask.upstream(text)
    assert time.process_time() - started < 3
