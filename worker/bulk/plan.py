"""What a bulk job is to do."""

from dataclasses import dataclass
from typing import Final

from worker.bulk.readers import Reading

OUTSTANDING: Final = 1000  # rows published and not answered


@dataclass(frozen=True, slots=True)
class SubmissionPlan:
    """What a job does. It waits for the next reply for `reply_timeout` seconds, or for ever."""

    reading: Reading
    account_id: str | None = None
    outstanding: int = OUTSTANDING
    wait: bool = True
    reply_timeout: float | None = None
    send_damaged: bool = False
