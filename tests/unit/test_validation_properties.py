"""What holds of the validator for any body whatsoever."""

import json
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.rig import LINE, MESSENGER
from worker.contract.platforms import SECRET_FIELDS
from worker.contract.registration import Registration, Rejection, parse_registration, validate
from worker.contract.reply import reply_body
from worker.contract.schema import json_schemas
from worker.contract.settlement import Settlement, dead_letter_headers, journal_record

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


def judge(body: bytes) -> Registration | Rejection:
    return parse_registration(body, content_type=None, content_encoding=None, max_bytes=1 << 20)


BODIES = (
    st.binary(max_size=200)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
    | documents().map(lambda document: json.dumps(document).encode())
    | documents().map(lambda document: json.dumps(document, ensure_ascii=False).encode(errors="replace"))
)


@given(BODIES, st.none() | st.text(max_size=30), st.none() | st.text(max_size=30))
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
def test_every_body_gets_an_answer_and_always_the_same(
    body: bytes, content_type: str | None, content_encoding: str | None
) -> None:
    def answer() -> Registration | Rejection:
        return parse_registration(
            body, content_type=content_type, content_encoding=content_encoding, max_bytes=1 << 20
        )

    assert isinstance(answer(), Registration | Rejection)
    assert answer() == answer()


@given(documents(), st.sampled_from(sorted(SECRET_FIELDS)), st.integers(0, 2**32))
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
def test_no_secret_reaches_an_envelope(document: dict[str, Any], field: str, number: int) -> None:
    canary = f"canary-{number}-canary"
    attributes = document["ottPlatformAttributes"]
    if isinstance(attributes, dict):
        attributes[field] = canary
        attributes["more"] = {"channelSecret": [canary], canary: canary}
    verdict = judge(json.dumps(document).encode())
    assert canary not in repr(verdict)
    if isinstance(verdict, Rejection):
        settlement = Settlement(
            request_id="r",
            status="rejected",
            reason=verdict.reason,
            message=verdict.message,
            errorcode=verdict.errorcode,
            documentation="",
            errors=verdict.errors,
            account=None,
            platform=verdict.platform,
            resource_id=verdict.resource_id,
            http_status=None,
            attempts=0,
            received_at=0,
            completed_at=0,
        )
        assert canary.encode() not in reply_body(settlement)
        assert canary not in repr([dead_letter_headers(settlement), journal_record(settlement)])


SCHEMAS = json_schemas()
SCHEMA = Draft202012Validator({"$ref": "#/$defs/Registration", "$defs": SCHEMAS["$defs"]})


@given(documents())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_the_json_schema_and_the_validator_agree(document: dict[str, Any]) -> None:
    attributes = document["ottPlatformAttributes"]
    flags = attributes.values() if isinstance(attributes, dict) else ()
    if any(isinstance(value, float) for value in flags):
        return  # to JSON Schema 1.0 is the integer 1; the contract refuses it as a flag
    assert SCHEMA.is_valid(document) == isinstance(validate(document), Registration)
