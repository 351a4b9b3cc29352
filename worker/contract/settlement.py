"""A settled request as one value, the headers of its dead letter, and its journal record (contract §1, §5,
§8). The reply (`reply.py`), the log line, the metrics and the trace use the same value, so that they
agree."""

import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from worker.contract.registration import FieldError
from worker.contract.timestamps import text_of
from worker.contract.words import (
    AGGREGATE,
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ERROR_HEADER,
    HTTP_STATUS_HEADER,
    LETTER_HEADER,
    REASON_HEADER,
    RECEIVED_AT_HEADER,
    REQUEST_ID_HEADER,
    Reason,
    Status,
)

ERRORS_LENGTH = 500  # characters of `x-ott-error`, and of all messages of a record together
# The API begins every list of errors with this.
_BOILERPLATE = "10006 Please fix the following errors: "
ID_LENGTH = 255  # characters


class Resource(NamedTuple):
    """A page or channel of one account; its requests are forwarded one at a time (contract §2)."""

    account: str | None
    platform: str
    id: str

    @classmethod
    def named(cls, account: str | None, platform: str | None, resource_id: str | None) -> "Resource | None":
        """The resource, or None if its platform or id is missing."""
        return None if platform is None or resource_id is None else cls(account, platform, resource_id)


class Settlement(NamedTuple):
    """The outcome of a request. It holds no secret.

    `reason` is set if and only if the request is dead-lettered. `message`, `errorcode`, `documentation` and
    `errors` are those of the error envelope; `registered` has none. Times are microseconds since the epoch.
    (A named tuple, because creating a frozen dataclass takes three times as long.)"""

    request_id: str
    status: Status
    reason: Reason | None
    message: str
    errorcode: int
    documentation: str
    errors: tuple[FieldError, ...]
    account: str | None
    platform: str | None
    resource_id: str | None
    http_status: int | None
    attempts: int
    received_at: int
    completed_at: int
    superseded_by: str | None = None
    is_replay: bool = False
    as_of: int | None = None

    @property
    def true_at(self) -> int:
        """The time that decides which request of a resource is the newest (contract §2)."""
        return self.received_at if self.as_of is None else self.as_of

    @property
    def resource(self) -> Resource | None:
        """The resource of the request, if its platform and id are readable."""
        return Resource.named(self.account, self.platform, self.resource_id)


def dead_letter_headers(settlement: Settlement) -> dict[str, str | int]:
    """The headers that the worker adds to a dead letter (contract §5)."""
    headers: dict[str, str | int] = {
        LETTER_HEADER: new_letter_id(),
        REASON_HEADER: settlement.reason or "",
        ERROR_HEADER: error_text(settlement),
        ATTEMPTS_HEADER: settlement.attempts,
        RECEIVED_AT_HEADER: text_of(settlement.received_at),
        DEAD_AT_HEADER: text_of(settlement.completed_at),
        REQUEST_ID_HEADER: settlement.request_id,
    }
    if settlement.http_status is not None:
        headers[HTTP_STATUS_HEADER] = settlement.http_status
    return headers


def new_letter_id() -> str:
    """16 hexadecimal digits that begin with a letter other than e, so that no spreadsheet reads them as a
    number."""
    return secrets.choice("abcdf") + secrets.token_hex(8)[1:]


def error_text(settlement: Settlement) -> str:
    """``10006 Please fix the following errors: PageId must be provided; IsActive is invalid``."""
    text = f"{settlement.errorcode} {settlement.message}"
    if settlement.errors:
        text += ": " + "; ".join(error.message for error in settlement.errors)
    return text[:ERRORS_LENGTH]


def brief(error: str) -> str:
    """An error text without the API's boilerplate."""
    return error.removeprefix(_BOILERPLATE)


class Settled(BaseModel):
    """The fields that replies and journal records have in common."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)

    attempts: int
    received_at: datetime
    completed_at: datetime
    as_of: datetime | None = Field(
        None, description="When the request's data was true, if its publisher stated it."
    )


class JournalRecord(Settled):
    """One line of a journal message. From the request's body it holds only platform and resource id."""

    id: str = Field(description="The request's id; like every id here, cut and marked beyond 255 characters.")
    status: Status
    reason: Reason | None = Field(description="Why it was dead-lettered; null if it was not.")
    account_id: str | None
    ott_platform_name: str | None
    resource_id: str | None
    http_status: int | None
    errorcode: int | None = Field(description="The error envelope's code; null for `registered`.")
    errors: tuple[str, ...] = Field(
        description=f"The messages of validationErrors, together at most {ERRORS_LENGTH} characters."
    )
    message: str | None = Field(
        None, description="Why it was not registered, if `errors` is empty; cut likewise."
    )
    superseded_by: str | None
    replay: bool = Field(description="Whether the request was a replay of a dead letter.")


def journal_record(settlement: Settlement) -> dict[str, Any]:
    """The journal record of a settlement, as a JSON document."""
    needs_no_message = settlement.reason is None or bool(settlement.errors)
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
        "message": None if needs_no_message else settlement.message[:ERRORS_LENGTH],
        "attempts": settlement.attempts,
        "receivedAt": text_of(settlement.received_at),
        "completedAt": text_of(settlement.completed_at),
        "supersededBy": settlement.superseded_by and recorded_id(settlement.superseded_by),
        "replay": settlement.is_replay,
    }
    if settlement.as_of is not None:
        record["asOf"] = text_of(settlement.as_of)
    return record


def why_unregistered(record: Mapping[str, Any]) -> str:
    """Why a request was not registered, from its journal record, in one line."""
    if by := record.get("supersededBy"):
        return f"superseded by {by}"
    errors, code = record.get("errors"), record.get("errorcode")
    messages = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
    texts = (
        f"HTTP {record['httpStatus']}" if record.get("httpStatus") and code is not None else "",
        "" if code in (None, AGGREGATE) else str(code),
        messages or str(record.get("message") or ""),
    )
    return " ".join(filter(None, texts)) or "-"


def recorded_id(id_: str) -> str:
    """An id as records hold it. An id of more than 255 characters is cut: its first 238 characters, `…`, and
    16 hexadecimal digits of a hash."""
    if len(id_) <= ID_LENGTH:
        return id_
    digest = blake2b(id_.encode(errors="replace"), digest_size=8, person=b"ott-long-id").hexdigest()
    return f"{id_[: ID_LENGTH - 1 - len(digest)]}…{digest}"


def _messages(errors: Iterable[FieldError]) -> list[str]:
    """The first ERRORS_LENGTH characters of the messages."""
    messages, left = [], ERRORS_LENGTH
    for error in errors:
        if left <= 0:
            break
        messages.append(error.message[:left])
        left -= len(error.message)
    return messages
