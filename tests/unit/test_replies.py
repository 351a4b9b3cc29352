"""All that is told of a settled request: reply, journal record and dead letter (contract §4, §5)."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from worker.contract.json_body import to_json
from worker.contract.registration import FieldError
from worker.contract.reply import MalformedReply, parse_reply, reply_body
from worker.contract.schema import json_schemas
from worker.contract.settlement import (
    JournalRecord,
    Settlement,
    dead_letter_headers,
    journal_record,
    recorded_id,
)

RECEIVED = 1_795_435_200_123_456
COMPLETED = 1_795_435_201_000_000
REGISTERED = Settlement(
    request_id="r-1",
    status="registered",
    reason=None,
    message="",
    errorcode=0,
    documentation="",
    errors=(),
    account=None,
    platform="messenger",
    resource_id="1732555047025799",
    http_status=201,
    attempts=1,
    received_at=RECEIVED,
    completed_at=COMPLETED,
)
FAILED = REGISTERED._replace(
    status="failed",
    reason="forbidden",
    message="No.",
    errorcode=10000,
    platform=None,
    resource_id=None,
    http_status=None,
    attempts=0,
)
REJECTED = FAILED._replace(
    status="rejected",
    reason="invalid",
    message="Please fix the following errors",
    errorcode=10006,
    errors=(FieldError("EndpointUrl must be provided", 10002),),
)
RESULT = reply_body(REGISTERED)


def test_a_result_has_the_contract_s_keys_in_order():
    assert json.dumps(json.loads(RESULT)) == (
        '{"status": "registered", "requestId": "r-1", "ottPlatformName": "messenger", '
        '"resourceId": "1732555047025799", "httpStatus": 201, "attempts": 1, '
        '"receivedAt": "2026-11-23T12:00:00.123456Z", "completedAt": "2026-11-23T12:00:01.000000Z"}'
    )


def test_an_error_envelope_has_the_contract_s_keys_in_order():
    assert json.dumps(json.loads(reply_body(REJECTED))) == (
        '{"status": "rejected", "message": "Please fix the following errors", "errorcode": 10006, '
        '"documentation": "", "validationErrors": [{"message": "EndpointUrl must be provided", '
        '"errorcode": 10002, "documentation": ""}], "requestId": "r-1", "ottPlatformName": null, '
        '"resourceId": null, "httpStatus": null, "attempts": 0, '
        '"receivedAt": "2026-11-23T12:00:00.123456Z", "completedAt": "2026-11-23T12:00:01.000000Z"}'
    )


@pytest.mark.parametrize("hostile", ["\ud800", "a\udcffb", "\ude00\ud83d"])
def test_text_that_utf_8_cannot_hold_is_replaced(hostile):
    envelope = reply_body(REJECTED._replace(request_id=hostile))
    assert "?" in json.loads(envelope.decode())["requestId"]


def test_an_error_envelope_reads_back():
    errors = (FieldError("PageId is invalid", 10001), FieldError("x", 1, "there"))
    refused = REJECTED._replace(errors=errors, platform="line", http_status=400, attempts=1)
    reply = parse_reply(reply_body(refused))
    assert (reply.status, reply.message) == ("rejected", "Please fix the following errors")
    assert (reply.errorcode, reply.errors) == (10006, errors)
    assert (reply.http_status, reply.platform, reply.resource_id) == (400, "line", None)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"status": "canary"}', b"\xff", RESULT[:-1]])
def test_what_is_no_reply_is_told_in_one_line_without_its_text(body):
    with pytest.raises(MalformedReply) as caught:
        parse_reply(body)
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "body",
    [RESULT, reply_body(REJECTED), reply_body(FAILED._replace(status="superseded", superseded_by="r-2"))],
)
def test_replies_follow_their_json_schema(body):
    schema = Draft202012Validator({"$ref": "#/$defs/Reply", "$defs": json_schemas()["$defs"]})
    schema.validate(json.loads(body))


def read_back(settlement: Settlement) -> JournalRecord:
    return JournalRecord.model_validate_json(to_json(journal_record(settlement)))


def test_a_journal_record_has_exactly_the_fields_that_the_schema_tells():
    told = {field.alias for field in JournalRecord.model_fields.values()}
    assert set(journal_record(REJECTED._replace(as_of=1))) == told
    assert set(journal_record(REJECTED)) == told - {"asOf"}


def test_a_journal_record_reads_back():
    record = read_back(REJECTED._replace(account="7", platform="line", is_replay=True))
    assert (record.id, record.status) == ("r-1", "rejected")
    assert (record.reason, record.errorcode) == ("invalid", 10006)
    assert (record.account_id, record.ott_platform_name, record.replay) == ("7", "line", True)
    assert record.errors == ("EndpointUrl must be provided",)
    assert read_back(REGISTERED).errorcode is None


def test_a_dead_letter_says_why_with_the_messages_of_all_errors():
    errors = (FieldError("PageId must be provided", 10002), FieldError("IsActive is invalid", 10005))
    headers = dead_letter_headers(REJECTED._replace(errors=errors))
    assert re.fullmatch("[abcdf][0-9a-f]{15}", str(headers.pop("x-ott-letter")))
    assert headers == {
        "x-ott-reason": "invalid",
        "x-ott-error": "10006 Please fix the following errors: PageId must be provided; IsActive is invalid",
        "x-ott-attempts": 0,
        "x-ott-received-at": "2026-11-23T12:00:00.123456Z",
        "x-ott-dead-at": "2026-11-23T12:00:01.000000Z",
        "x-ott-request-id": "r-1",
    }


def test_the_error_of_a_dead_letter_has_500_characters_at_most():
    errors = tuple(FieldError("x" * 100, 1) for _ in range(100))
    error = dead_letter_headers(REJECTED._replace(errors=errors))["x-ott-error"]
    assert len(str(error)) == 500


def test_ids_beyond_255_characters_are_cut_and_marked_in_records_and_stay_apart():
    long = [f"{'7' * 100_000}{end}" for end in "ab"]
    records = [journal_record(REGISTERED._replace(request_id=each, resource_id=each)) for each in long]
    assert records[0]["id"] != records[1]["id"]
    for record in records:
        assert len(record["id"]) == len(record["resourceId"]) == 255
        assert "7…" in record["id"]
        assert len(to_json(record)) < 1000
    assert recorded_id("7" * 255) == "7" * 255
    assert recorded_id(records[0]["id"]) == records[0]["id"]
