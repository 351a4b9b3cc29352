"""The headers that a dead letter adds to the request (contract §5)."""

import secrets

from worker.contract.settlement import Settlement
from worker.contract.timestamps import text_of
from worker.contract.words import (
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ERROR_HEADER,
    HTTP_STATUS_HEADER,
    LETTER_HEADER,
    REASON_HEADER,
    RECEIVED_AT_HEADER,
    REQUEST_ID_HEADER,
)

ERROR_LENGTH = 500  # characters of `x-ott-error`
# The API wraps every list of errors in the same words.
_BOILERPLATE = ("10006 Please fix the following errors: ", "10006 Please fix the following errors")


def dead_letter_headers(settlement: Settlement) -> dict[str, str | int]:
    """Which request was given up, why, when, and after how many calls."""
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
    """16 hexadecimal digits that begin with a letter other than e: a spreadsheet takes nothing of that shape
    for a number."""
    return secrets.choice("abcdf") + secrets.token_hex(8)[1:]


def error_text(settlement: Settlement) -> str:
    """``10006 Please fix the following errors: PageId must be provided; IsActive is invalid``."""
    text = f"{settlement.errorcode} {settlement.message}"
    if settlement.errors:
        text += ": " + "; ".join(error.message for error in settlement.errors)
    return text[:ERROR_LENGTH]


def brief(error: str) -> str:
    """An error that begins with its cause."""
    for words in _BOILERPLATE:
        if error.startswith(words) and error != words:
            return error.removeprefix(words)
    return error
