"""The record that the journal keeps of a settled request (contract §1, §8)."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from worker.contract.words import Status


class JournalRecord(BaseModel):
    """One line of a journal message. It holds nothing of the request's body but the resource's name."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)

    id: str = Field(description="The request's id.")
    status: Status
    reason: Literal["invalid", "rejected", "exhausted", "forbidden", "oversize"] | None = Field(
        description="Why it was dead-lettered, where it was."
    )
    account_id: str | None
    ott_platform_name: str | None
    resource_id: str | None
    http_status: int | None
    errorcode: int | None
    attempts: int
    received_at: datetime
    completed_at: datetime
    superseded_by: str | None
