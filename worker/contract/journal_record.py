"""The record that the journal keeps of a settled request (contract §1, §5, §8)."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from worker.contract.registration import FieldError
from worker.contract.settlement import Settlement
from worker.contract.timestamps import text_of
from worker.contract.words import AGGREGATE, Reason, Status

ERRORS_LENGTH = 500  # characters of all messages together
ID_LENGTH = 255  # characters


class JournalRecord(BaseModel):
    """One line of a journal message. Of the request's body it holds nothing but the resource's name."""

    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    id: str = Field(description="The request's id; like every id here cut and marked beyond 255 characters.")
    status: Status
    reason: Reason | None = Field(description="Why it was dead-lettered, where it was.")
    account_id: str | None
    ott_platform_name: str | None
    resource_id: str | None
    http_status: int | None
    errorcode: int | None = Field(description="The error envelope's code; null for `registered`.")
    errors: tuple[str, ...] = Field(
        description=f"The messages of validationErrors, {ERRORS_LENGTH} characters at most together."
    )
    message: str | None = Field(
        default=None, description="Why it was not registered, where `errors` does not tell; cut likewise."
    )
    attempts: int
    received_at: datetime
    completed_at: datetime
    superseded_by: str | None
    replay: bool = Field(description="Whether the request was a replay of a dead letter.")
    as_of: datetime | None = Field(
        default=None, description="When what the request says was true, where its publisher told."
    )


def journal_record(settlement: Settlement) -> dict[str, Any]:
    """The record as it is written."""
    is_told = settlement.reason is None or bool(settlement.errors)
    record = {
        "id": recorded_id(settlement.request_id),
        "status": settlement.status,
        "reason": settlement.reason,
        "accountId": settlement.account,
        "ottPlatformName": settlement.platform,
        "resourceId": None if settlement.resource_id is None else recorded_id(settlement.resource_id),
        "httpStatus": settlement.http_status,
        "errorcode": None if settlement.status == "registered" else settlement.errorcode,
        "errors": _messages(settlement.errors) if settlement.errors else (),
        "message": None if is_told else settlement.message[:ERRORS_LENGTH],
        "attempts": settlement.attempts,
        "receivedAt": text_of(settlement.received_at),
        "completedAt": text_of(settlement.completed_at),
        "supersededBy": settlement.superseded_by and recorded_id(settlement.superseded_by),
        "replay": settlement.is_replay,
    }
    if settlement.as_of is not None:
        record["asOf"] = text_of(settlement.as_of)
    return record


def why(record: Mapping[str, Any]) -> str:
    """Why a request was not registered, as its record tells, in one line."""
    if by := record.get("supersededBy"):
        return f"superseded by {by}"
    errors, code = record.get("errors"), record.get("errorcode")
    said = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    texts = (
        f"HTTP {record['httpStatus']}" if record.get("httpStatus") and code is not None else "",
        "" if code in (None, AGGREGATE) else str(code),
        said or str(record.get("message") or ""),
    )
    return " ".join(filter(None, texts)) or "-"


def recorded_id(given: str) -> str:
    """An id as records hold it. One beyond 255 characters is cut and marked: 238 of its characters, `…`, and
    16 hexadecimal digits that tell it from others which begin alike."""
    if len(given) <= ID_LENGTH:
        return given
    digest = blake2b(given.encode(errors="replace"), digest_size=8, person=b"ott-long-id").hexdigest()
    return f"{given[: ID_LENGTH - 1 - len(digest)]}…{digest}"


def _messages(errors: Iterable[FieldError]) -> list[str]:
    """The messages until their characters are used up; the last one may be cut."""
    messages, left = [], ERRORS_LENGTH
    for error in errors:
        if left <= 0:
            break
        messages.append(error.message[:left])
        left -= len(error.message)
    return messages
