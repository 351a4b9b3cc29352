"""The headers that a dead letter adds to the request (contract §5)."""

from worker.contract.settlement import Settlement
from worker.contract.timestamps import text_of
from worker.contract.words import (
    ATTEMPTS_HEADER,
    DEAD_AT_HEADER,
    ERROR_HEADER,
    REASON_HEADER,
    RECEIVED_AT_HEADER,
    REQUEST_ID_HEADER,
)

ERROR_LENGTH = 500  # characters of `x-ott-error`


def dead_letter_headers(settlement: Settlement) -> dict[str, str | int]:
    """Which request was given up, why, when, and after how many calls."""
    return {
        REASON_HEADER: settlement.reason or "",
        ERROR_HEADER: error_text(settlement),
        ATTEMPTS_HEADER: settlement.attempts,
        RECEIVED_AT_HEADER: text_of(settlement.received_at),
        DEAD_AT_HEADER: text_of(settlement.completed_at),
        REQUEST_ID_HEADER: settlement.request_id,
    }


def error_text(settlement: Settlement) -> str:
    """``10006 Please fix the following errors: PageId must be provided; IsActive is invalid``."""
    text = f"{settlement.errorcode} {settlement.message}"
    if settlement.errors:
        text += ": " + "; ".join(error.message for error in settlement.errors)
    return text[:ERROR_LENGTH]
