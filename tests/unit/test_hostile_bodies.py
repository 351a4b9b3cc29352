"""Contract §3: bodies that are refused as malformed, and those that only look so."""

import json
import sys
import time

import pytest

from tests.rig import messenger
from worker.contract.registration import Registration, Rejection, parse_registration

LIMIT = 1 << 20
VALID = messenger()


def judge(
    body: bytes, content_type: str | None = None, content_encoding: str | None = None, max_bytes: int = LIMIT
) -> Registration | Rejection:
    return parse_registration(
        body, content_type=content_type, content_encoding=content_encoding, max_bytes=max_bytes
    )


def with_value(literal: bytes) -> bytes:
    """The Messenger example with one more field, whose value is `literal`."""
    return VALID[:-1] + b', "more": ' + literal + b"}"


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


MALFORMED = {
    "empty": b"",
    "not JSON": b"registration, please",
    "cut off": VALID[:-1],
    "trailing text": VALID + b"x",
    "trailing comma": b'{"a": 1,}',
    "a list": b"[" + VALID + b"]",
    "a string": b'"x"',
    "byte order mark": b"\xef\xbb\xbf" + VALID,
    "UTF-16": VALID.decode().encode("utf-16"),
    "Latin-1": with_value('"é"'.encode("latin-1")),
    "overlong UTF-8": with_value(b'"\xc0\xaf"'),
    "an encoded surrogate": with_value(b'"\xed\xa0\x80"'),
    "a lone high surrogate": with_value(b'"\\ud800"'),
    "a lone low surrogate": with_value(b'"\\udc00"'),
    "a lone surrogate in a key": with_value(b'{"\\ud800": 1}'),
    "NaN": with_value(b"NaN"),
    "Infinity": with_value(b"Infinity"),
    "a float too large": with_value(b"1e999"),
    "an integer of 5,000 digits": with_value(b"1" * 5000),
    "an exponent of 5,000 digits": with_value(b"1e-" + b"1" * 5000),
    "10,000 levels of lists": with_value(nested(10_000)),
    "10,000 levels of objects": with_value(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "a duplicate key": b'{"a": 1, "a": 1}',
    "a duplicate key of which one is escaped": b'{"a": 1, "\\u0061": 2}',
    "a nested duplicate key": with_value(b'[{"a": {"b": 1, "b": 2}}]'),
    "a second platform name": VALID[:-1] + b', "ottPlatformName": "line"}',
    "a raw line break in a string": with_value(b'"a\nb"'),
    "a raw NUL in a string": with_value(b'"\x00"'),
    "a leading zero": with_value(b"01"),
    "a bad escape": with_value(b'"\\x41"'),
    "more than 10,000 empty lists": with_value(b"[ " + b"[ ], " * 10_000 + b"[]]"),
    "more than 10,000 strings": with_value(b"[" + b'"a",' * 10_000 + b'"a"]'),
    "more than 10,000 keys": with_value(b"{" + b",".join(b'"%d":1' % n for n in range(10_000)) + b"}"),
    "a no-break space between": VALID.replace(b", ", ",\u00a0".encode(), 1),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_is_refused_with_10004_and_no_field_errors(body):
    verdict = judge(body)
    assert isinstance(verdict, Rejection)
    assert (verdict.reason, verdict.errorcode, verdict.errors) == ("invalid", 10004, ())
    assert (verdict.platform, verdict.resource_id) == (None, None)
    assert verdict.message.endswith(".")
    assert "\n" not in verdict.message
    assert judge(body) == verdict


LEGAL = {
    "escaped line breaks": b'"a\\r\\nb"',
    "a surrogate pair": b'"\\ud83d\\ude00"',
    "an escaped backslash before u": b'"\\\\ud800"',
    "a large integer": b"123456789012345678901234567890",
    "an integer of 300 digits": b"1" * 300,
    "a tiny float": b"1e-999",
    "100 levels of lists": nested(100),
    "1,000 lists side by side": b"[" + b"[]," * 999 + b"[]]",
    "brackets in a string": json.dumps("[{" * 5000).encode(),
    "punctuation in a string": json.dumps('\\",[]{}:' * 5000).encode(),
    "all but 10,000 values": b"[" + b'"],[", ' * 9_980 + b"{}]",
    "an empty key": b'{"": 1}',
    "keys that differ in case": b'{"a": 1, "A": 2}',
}


@pytest.mark.parametrize("literal", LEGAL.values(), ids=LEGAL.keys())
def test_unusual_but_proper_json_is_accepted(literal):
    assert judge(with_value(literal)) == Registration("messenger", "1732555047025799")


def test_a_body_over_the_limit_is_oversize_without_being_read():
    verdict = judge(b"x" * 101, max_bytes=100)
    assert isinstance(verdict, Rejection)
    assert (verdict.reason, verdict.errorcode, verdict.errors) == ("oversize", 10004, ())
    assert "100 bytes" in verdict.message


JSON_TYPES = [
    None,
    "",
    "application/json",
    "Application/JSON",
    'application/json;charset="UTF-8"',
    " application/json ",
]
OTHER_TYPES = [
    "text/plain",
    "application/x-json",
    "application/json; charset=latin-1",
    ";",
    "\x00",
    "a" * 255,
]


@pytest.mark.parametrize("content_type", JSON_TYPES)
def test_json_content_types_are_accepted(content_type):
    assert isinstance(judge(VALID, content_type=content_type), Registration)


@pytest.mark.parametrize(
    ("content_type", "content_encoding"),
    [*((kind, None) for kind in OTHER_TYPES), *((None, coding) for coding in ("gzip", "utf-16", "\ud800"))],
)
def test_another_content_type_or_encoding_is_refused_like_a_body_that_is_not_json(
    content_type, content_encoding
):
    verdict = judge(VALID, content_type=content_type, content_encoding=content_encoding)
    assert isinstance(verdict, Rejection)
    assert (verdict.reason, verdict.errorcode, verdict.errors) == ("invalid", 10004, ())


@pytest.mark.parametrize("secret", ["canary-4711"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: body + b"x",
        lambda body: body[:-1] + b', "canary-4711": 1, "canary-4711": 2}',
        lambda body: body.replace(b'"messenger"', b"NaN"),
        lambda body: body.replace(b'"messenger"', b'"canary-4711"'),
        lambda body: body.replace(b'"canary-4711"', b'["canary-4711"]'),
        lambda body: body.replace(b'"canary-4711"', b'{"canary-4711": "canary-4711"}'),
        lambda body: body + b"\xff",
    ],
)
def test_no_message_repeats_the_input(spoil, secret):
    body = messenger(page_id=secret, applicationSecret=secret, pageAccessToken=secret)
    verdict = judge(spoil(body))
    assert isinstance(verdict, Rejection)
    assert secret not in verdict.message
    assert not any(secret in error.message for error in verdict.errors)


def test_the_verdict_does_not_depend_on_how_deep_the_caller_is():
    body = with_value(nested(190))

    def at_depth(levels: int) -> Registration | Rejection:
        return judge(body) if levels == 0 else at_depth(levels - 1)

    assert at_depth(0) == at_depth(sys.getrecursionlimit() // 2)


@pytest.mark.parametrize(
    "literal",
    [
        pytest.param(b"[" + b"[]," * 330_000 + b"[]]", id="many lists"),
        pytest.param(b'"' + b"\\u0000" * 170_000 + b'"', id="many escapes"),
        pytest.param(b"[" + b"1," * 500_000 + b"1]", id="many numbers"),
        pytest.param(b"[" + b'"",' * 330_000 + b'""]', id="many strings"),
        pytest.param(b'"' + b"[," * 500_000 + b'"', id="brackets in a string"),
        pytest.param(b'"' + b'\\"' * 500_000 + b'"', id="quotes in a string"),
        pytest.param(b"[" + b"1" * 300 + (b"," + b"1" * 300) * 3_400 + b"]", id="long numbers"),
        pytest.param(b"[" + (b"{" + b" " * 90 + b"},") * 9_900 + b"1]", id="just below 10,000 values"),
    ],
)
def test_the_largest_body_holds_the_event_loop_for_less_than_50_ms(literal):
    body = with_value(literal)
    took = []
    for _ in range(3):
        started = time.process_time()
        judge(body)
        took.append(time.process_time() - started)
    assert min(took) < 0.05
