"""The messages of PREFIX.status (what a worker is doing) and of PREFIX.control (operators' orders, and the
audit trail of their changes; contract §9, §11)."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STATUS_INTERVAL: Final = 5.0  # seconds; the longest time between two records of a worker
SILENT_AFTER: Final = timedelta(seconds=3 * STATUS_INTERVAL)

WorkerState = Literal["active", "standby", "draining", "stopped"]
GateState = Literal["open", "closed", "opening"]
GateCause = Literal["credentials", "outage"]
OrderKind = Literal["pause", "resume", "replaying", "replayed", "discarding", "discarded"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Order(_Model):
    """One message. Workers obey `pause` and `resume`. The others are the audit trail: the begin and end of a
    change of dead letters."""

    order: OrderKind
    by: str = Field(description="user@host of the operator.")
    why: str = Field("", description="The operator's reason.")
    at: AwareDatetime
    count: int | None = Field(None, description="Dead letters that were replayed or discarded.")
    run: str | None = Field(None, description="The id of the change; the same at its begin and end.")
    cause: str | None = Field(None, description="Why the letters were dead-lettered.")
    outcome: str | None = Field(None, description="The outcome of the replays.")

    @classmethod
    def now(cls, order: OrderKind, why: str, *, by: str, **more: Any) -> Self:
        """An order with the present time."""
        return cls(order=order, by=by, why=why, at=datetime.now(UTC), **more)

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(exclude_none=True).encode()


class Pause(_Model):
    """A pause by order, in a worker's status."""

    by: str
    why: str
    since: AwareDatetime


def standing_pause(orders: Sequence[Order]) -> Pause | None:
    """The pause in force after these orders, oldest first: the last `pause` or `resume` counts."""
    last = next((each for each in reversed(orders) if each.order in ("pause", "resume")), None)
    if last is None or last.order == "resume":
        return None
    return Pause(by=last.by, why=last.why, since=last.at)


class GateStatus(_Model):
    """The gate to Marketing Cloud (contract §6). While it is open, `why` and `since` are null and `cause` is
    absent. An outage ends by itself; refused credentials must be replaced."""

    state: GateState
    why: str | None = None
    since: AwareDatetime | None = None
    cause: GateCause | None = Field(None, exclude_if=lambda cause: cause is None)


class Blocked(_Model):
    """A queue of the worker that accepts no messages."""

    queue: str
    why: str
    since: AwareDatetime


class WorkerStatus(_Model):
    """One record of one worker. It holds no secret."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    worker: str = Field(description="host:pid:start")
    version: str
    at: AwareDatetime
    state: WorkerState
    partitions: list[int] = Field([], description="The partitions whose active consumer it is.")
    gate: GateStatus
    paused: Pause | None = Field(None, description="The pause by order, while it is in force.")
    blocked: list[Blocked] = Field([], description="Its own queues that accept no messages.")
    pace: float | None = Field(None, description="Calls per second, while a speed limit slows it.")
    in_flight: int = Field(description="Requests that are delivered and not settled.")
    rate_per_second: float = Field(description="Requests settled per second, recently.")
    reconnects: int = Field(description="How often the consuming connection was reopened.")

    @property
    def place(self) -> str:
        """host:pid"""
        return self.worker.rpartition(":")[0]

    @property
    def condition(self) -> str:
        """`paused` or `blocked` if it is, else its state; `draining` comes first."""
        if self.state == "draining":
            return self.state
        return "paused" if self.paused else "blocked" if self.blocked else self.state

    def is_silent(self, now: datetime) -> bool:
        """Whether its next record is overdue: it has ended, or is cut off."""
        return now - self.at > SILENT_AFTER

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(by_alias=True).encode()
