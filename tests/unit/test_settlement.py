"""One value, and all that is told of a settled request is made from it (contract §4, §5)."""

import re

from tests.unit.test_replies import REGISTERED, REJECTED
from worker.contract.json_body import to_json
from worker.contract.registration import FieldError
from worker.contract.settlement import (
    JournalRecord,
    Settlement,
    dead_letter_headers,
    journal_record,
    recorded_id,
)


def read_back(settlement: Settlement) -> JournalRecord:
    return JournalRecord.model_validate_json(to_json(journal_record(settlement)))


def test_a_journal_record_has_exactly_the_fields_that_the_schema_tells() -> None:
    told = {field.alias for field in JournalRecord.model_fields.values()}
    assert set(journal_record(REJECTED._replace(as_of=1))) == told
    assert set(journal_record(REJECTED)) == told - {"asOf"}


def test_a_journal_record_reads_back() -> None:
    record = read_back(REJECTED._replace(account="7", platform="line", is_replay=True))
    assert (record.id, record.status, record.reason, record.errorcode) == (
        "r-1",
        "rejected",
        "invalid",
        10006,
    )
    assert (record.account_id, record.ott_platform_name, record.replay) == ("7", "line", True)
    assert record.errors == ("EndpointUrl must be provided",)
    assert read_back(REGISTERED).errorcode is None


def test_a_dead_letter_says_why_with_the_messages_of_all_errors() -> None:
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


def test_the_error_of_a_dead_letter_has_500_characters_at_most() -> None:
    errors = tuple(FieldError("x" * 100, 1) for _ in range(100))
    error = dead_letter_headers(REJECTED._replace(errors=errors))["x-ott-error"]
    assert len(str(error)) == 500


def test_ids_beyond_255_characters_are_cut_and_marked_in_records_and_stay_apart() -> None:
    long = [f"{'7' * 100_000}{end}" for end in "ab"]
    records = [journal_record(REGISTERED._replace(request_id=each, resource_id=each)) for each in long]
    assert records[0]["id"] != records[1]["id"]
    for record in records:
        assert len(record["id"]) == len(record["resourceId"]) == 255
        assert "7…" in record["id"]
        assert len(to_json(record)) < 1000
    assert recorded_id("7" * 255) == "7" * 255
    assert recorded_id(records[0]["id"]) == records[0]["id"]
