"""Contract §3, row by row, and what holds of the validator for any body whatsoever."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import worker.contract
from tests.rig import LINE, MESSENGER
from tests.unit.test_replies import REJECTED
from worker.contract.platforms import PLATFORMS, PUBLIC_FIELDS, SECRET_FIELDS
from worker.contract.registration import Registration, Rejection, parse_registration, validate
from worker.contract.reply import reply_body
from worker.contract.schema import json_schemas
from worker.contract.settlement import Settlement, dead_letter_headers, journal_record


def titles(*fields: str) -> dict[str, str]:
    """The API's name in messages for each field, which is no more regular than this."""
    return {name: name if name.startswith("isT") else name[0].upper() + name[1:] for name in fields}


COMMON = ("endpointUrl", "isActive")
MESSENGER_TITLES = titles(
    *COMMON,
    "applicationId",
    "applicationSecret",
    "pageId",
    "pageName",
    "pageAccessToken",
    "callbackVerifyToken",
)
LINE_TITLES = titles(*COMMON, "channelId", "channelName", "channelSecret", "isTransactional", "isTestChannel")
FLAGS = {"isActive", "isTransactional", "isTestChannel"}

REQUIRED = [(MESSENGER, *item) for item in MESSENGER_TITLES.items()]
REQUIRED += [(LINE, *item) for item in LINE_TITLES.items()]
STRINGS = [row for row in REQUIRED if row[1] not in FLAGS]
FLAG_ROWS = [row for row in REQUIRED if row[1] in FLAGS]
ABSENT = object()


def with_attribute(example: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    return {**example, "ottPlatformAttributes": changed(example["ottPlatformAttributes"], name, value)}


def with_field(name: str, value: object) -> dict[str, Any]:
    return changed(MESSENGER, name, value)


def changed(document: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    return {key: held for key, held in {**document, name: value}.items() if held is not ABSENT}


def judged(body: bytes, content_type: str | None = None, encoding: str | None = None) -> Any:
    return parse_registration(body, content_type=content_type, content_encoding=encoding, max_bytes=1 << 20)


def errors_of(document: dict[str, Any]) -> list[tuple[str, int]]:
    verdict = judged(json.dumps(document).encode())
    assert isinstance(verdict, Rejection), "it was accepted"
    assert (verdict.reason, verdict.message) == ("invalid", "Please fix the following errors")
    assert verdict.errorcode == 10006
    assert all(error.documentation == "" for error in verdict.errors)
    return [(error.message, error.errorcode) for error in verdict.errors]


def accepted(document: dict[str, Any]) -> bool:
    return isinstance(validate(document), Registration)


@pytest.mark.parametrize(
    ("example", "registration"),
    [
        (MESSENGER, Registration("messenger", "1732555047025799")),
        (LINE, Registration("line", "23493453984234345")),
    ],
)
def test_the_api_s_examples_are_valid(example, registration):
    body = json.dumps(example, indent=4, separators=(",", " : ")).encode()
    assert judged(body) == registration


PRINTED = """{
    "message": "Please fix the following errors",
    "errorcode": 10006,
    "documentation": "",
    "validationErrors": [
        {
            "message": "EndpointUrl must be provided",
            "errorcode": 10002,
            "documentation": ""
        },
        {
            "message": "OttPlatformName must be provided",
            "errorcode": 10002,
            "documentation": ""
        }
    ]
}"""


def settled(verdict: Rejection) -> Settlement:
    fields = ("reason", "message", "errorcode", "errors", "platform", "resource_id")
    return REJECTED._replace(**{name: getattr(verdict, name) for name in fields})


def test_the_api_s_error_example_comes_out_as_printed():
    document = with_attribute(MESSENGER, "endpointUrl", ABSENT)
    del document["ottPlatformName"]
    envelope = json.loads(reply_body(settled(validate(document))))
    assert json.dumps({name: envelope[name] for name in json.loads(PRINTED)}, indent=4) == PRINTED


@pytest.mark.parametrize(("example", "field", "title"), REQUIRED)
@pytest.mark.parametrize("value", [ABSENT, None, ""], ids=["absent", "null", "empty"])
def test_a_required_field_must_be_provided(example, field, title, value):
    assert errors_of(with_attribute(example, field, value)) == [(f"{title} must be provided", 10002)]


@pytest.mark.parametrize(("example", "field", "title"), STRINGS)
@pytest.mark.parametrize("value", [0, 1732555047025799, 1.5, True, False, [], ["x"], {}, {"x": 1}])
def test_a_field_of_the_wrong_type_is_10001(example, field, title, value):
    assert errors_of(with_attribute(example, field, value)) == [(f"{title} is invalid", 10001)]


@pytest.mark.parametrize(("example", "field", "title"), FLAG_ROWS)
@pytest.mark.parametrize("value", [2, -1, 1.0, 0.0, 0.5, "1", "0", "true", "false", " ", [], {}, [1]])
def test_a_flag_is_exactly_true_false_0_or_1(example, field, title, value):
    assert errors_of(with_attribute(example, field, value)) == [(f"{title} is invalid", 10005)]


@pytest.mark.parametrize(("example", "field", "title"), FLAG_ROWS)
@pytest.mark.parametrize("value", [True, False, 0, 1])
def test_false_and_0_are_present(example, field, title, value):
    assert accepted(with_attribute(example, field, value)), title


@pytest.mark.parametrize("value", [ABSENT, None, ""], ids=["absent", "null", "empty"])
def test_the_platform_name_must_be_provided(value):
    assert errors_of(with_field("ottPlatformName", value)) == [("OttPlatformName must be provided", 10002)]


@pytest.mark.parametrize(
    "value", ["Messenger", "LINE", "messenger ", " ", "fax", "\u0000", 0, 1, True, False, [], {}, ["line"]]
)
def test_any_other_platform_name_is_invalid(value):
    assert errors_of(with_field("ottPlatformName", value)) == [("OttPlatformName is invalid", 10005)]


@pytest.mark.parametrize("value", [ABSENT, None, {}, [], "", "x", 0, 1, True, [{"pageId": "1"}]])
def test_attributes_that_are_no_object_or_empty_are_invalid(value):
    assert errors_of(with_field("ottPlatformAttributes", value)) == [
        *((f"{title} must be provided", 10002) for title in MESSENGER_TITLES.values()),
        ("OttPlatformAttributes is invalid", 10005),
    ]


@pytest.mark.parametrize("value", [ABSENT, None, "", "still one"])
def test_the_customer_connect_secret_is_optional(value):
    assert accepted(with_attribute(LINE, "customerConnectSecret", value))


@pytest.mark.parametrize("value", [0, 1, False, [], {}])
def test_a_customer_connect_secret_of_the_wrong_type_is_10001(value):
    errors = errors_of(with_attribute(LINE, "customerConnectSecret", value))
    assert errors == [("CustomerConnectSecret is invalid", 10001)]


def test_an_unknown_platform_has_only_the_common_attributes_checked():
    document = {"ottPlatformName": "fax", "ottPlatformAttributes": {"pageId": 1, "isActive": 7}}
    assert errors_of(document) == [
        ("EndpointUrl must be provided", 10002),
        ("IsActive is invalid", 10005),
        ("OttPlatformName is invalid", 10005),
    ]


@pytest.mark.parametrize(("platform", "titles"), [("messenger", MESSENGER_TITLES), ("line", LINE_TITLES)])
def test_errors_come_in_the_order_of_the_api_s_table(platform, titles):
    document = {"ottPlatformName": platform, "ottPlatformAttributes": {"unknown": 1}}
    assert [message for message, _ in errors_of(document)] == [
        f"{title} must be provided" for title in titles.values()
    ]


@pytest.mark.parametrize(("example", "field", "title"), STRINGS)
@pytest.mark.parametrize("value", [" ", "\t\n", "\u0000", "a\r\nb", "😀", "x" * 100_000, "not a url, no id"])
def test_no_format_is_asked_of_a_string(example, field, title, value):
    assert accepted(with_attribute(example, field, value)), title


@pytest.mark.parametrize(("example", "field"), [(MESSENGER, "pageId"), (LINE, "channelId")])
def test_a_refusal_names_the_resource_when_it_is_known(example, field):
    document = with_attribute(example, "endpointUrl", None)
    refusal = validate(document)
    assert isinstance(refusal, Rejection)
    assert refusal.platform == example["ottPlatformName"]
    assert refusal.resource_id == example["ottPlatformAttributes"][field]


@pytest.mark.parametrize("page_id", [7, "", None, ["x"]])
def test_a_refusal_names_no_resource_without_a_usable_id(page_id):
    refusal = validate(with_attribute(MESSENGER, "pageId", page_id))
    assert isinstance(refusal, Rejection)
    assert (refusal.platform, refusal.resource_id) == ("messenger", None)


def test_the_platforms_are_those_of_the_contract():
    assert {
        name: (platform.id_field, SECRET_FIELDS & set(platform.fields))
        for name, platform in PLATFORMS.items()
    } == {
        "messenger": ("pageId", {"applicationSecret", "pageAccessToken", "callbackVerifyToken"}),
        "line": ("channelId", {"channelSecret", "customerConnectSecret"}),
    }
    assert not PUBLIC_FIELDS & SECRET_FIELDS
    contract = (Path(worker.contract.__file__).parent / "README.md").read_text("utf-8")
    assert [name for name in PLATFORMS if f"\n| `{name}` |" not in contract] == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = sorted({*MESSENGER["ottPlatformAttributes"], *LINE["ottPlatformAttributes"]})
INTERESTING = st.sampled_from([None, "", " ", 0, 1, 2, True, False, 1.0, "1", [], {}]) | ANYTHING


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Registrations in which a few things are amiss, or nothing is."""
    document: dict[str, Any] = deepcopy(draw(st.sampled_from([MESSENGER, LINE])))
    attributes = document["ottPlatformAttributes"]
    for name in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        if draw(st.booleans()):
            attributes.pop(name, None)
        else:
            attributes[name] = draw(INTERESTING)
    for name in draw(st.lists(st.sampled_from(sorted(document)), max_size=1)):
        document[name] = draw(INTERESTING | st.sampled_from(["line", "messenger"]))
    return document


BODIES = (
    st.binary(max_size=200)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | documents().map(lambda document: json.dumps(document).encode())
    | documents().map(lambda document: json.dumps(document, ensure_ascii=False).encode(errors="replace"))
)


@given(BODIES, st.none() | st.text(max_size=30), st.none() | st.text(max_size=30))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_every_body_gets_an_answer_and_always_the_same(body, content_type, content_encoding):
    answer = judged(body, content_type, content_encoding)
    assert isinstance(answer, Registration | Rejection)
    assert answer == judged(body, content_type, content_encoding)


@given(documents(), st.sampled_from(sorted(SECRET_FIELDS)), st.integers(0, 2**32))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_no_secret_reaches_an_envelope(document, field, number):
    canary = f"canary-{number}-canary"
    attributes = document["ottPlatformAttributes"]
    if isinstance(attributes, dict):
        attributes[field] = canary
        attributes["more"] = {"channelSecret": [canary], canary: canary}
    verdict = judged(json.dumps(document).encode())
    assert canary not in repr(verdict)
    if isinstance(verdict, Rejection):
        told = settled(verdict)
        assert canary.encode() not in reply_body(told)
        assert canary not in repr([dead_letter_headers(told), journal_record(told)])


SCHEMAS = json_schemas()
SCHEMA = Draft202012Validator({"$ref": "#/$defs/Registration", "$defs": SCHEMAS["$defs"]})


@given(documents())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_the_json_schema_and_the_validator_agree(document):
    attributes = document["ottPlatformAttributes"]
    flags = attributes.values() if isinstance(attributes, dict) else ()
    if any(isinstance(value, float) for value in flags):
        return  # to JSON Schema 1.0 is the integer 1; the contract refuses it as a flag
    assert SCHEMA.is_valid(document) == isinstance(validate(document), Registration)
