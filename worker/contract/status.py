"""A worker's status (contract §9): the messages of PREFIX.status."""

from datetime import datetime, timedelta
from typing import Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.alias_generators import to_camel

from worker.contract.control import Pause

STATUS_INTERVAL: Final = 5.0  # seconds between two records of a worker, at most
SILENT_AFTER: Final = timedelta(seconds=3 * STATUS_INTERVAL)

WorkerState = Literal["active", "standby", "draining", "stopped"]
GateState = Literal["open", "closed", "opening"]
GateCause = Literal["credentials", "outage"]


class GateStatus(BaseModel):
    """The gate to Marketing Cloud (contract §6). `why` and `since` are null while it is open, and `cause` is
    left out: an outage heals by itself, refused credentials do not."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    state: GateState
    why: str | None = None
    since: AwareDatetime | None = None
    cause: GateCause | None = None

    @model_serializer(mode="wrap")
    def _without_cause(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if self.cause is None:
            document.pop("cause")
        return document


class Blocked(BaseModel):
    """A queue of the worker's own that takes no messages."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    queue: str
    why: str
    since: AwareDatetime


class WorkerStatus(BaseModel):
    """One record of one worker. It holds no secret."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, hide_input_in_errors=True
    )

    worker: str = Field(description="host:pid:start")
    version: str
    at: AwareDatetime
    state: WorkerState
    partitions: list[int] = Field(default=[], description="Those it is the active consumer of; none without.")
    gate: GateStatus
    paused: Pause | None = Field(default=None, description="The pause that was ordered, while it stands.")
    blocked: list[Blocked] = Field(default=[], description="Its own queues that take nothing.")
    pace: float | None = Field(default=None, description="Calls a second that a speed limit leaves it.")
    in_flight: int = Field(description="Requests that were delivered and are not settled.")
    rate_per_second: float = Field(description="Requests settled a second, lately.")
    reconnects: int = Field(description="Times that the consuming connection was opened again.")

    @property
    def place(self) -> str:
        """host:pid"""
        return self.worker.rpartition(":")[0]

    def is_silent(self, now: datetime) -> bool:
        """Whether the worker should have said something since: it has ended, or is cut off."""
        return now - self.at > SILENT_AFTER

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(by_alias=True).encode()
