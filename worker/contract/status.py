"""The messages of PREFIX.status, what a worker is doing; and of PREFIX.control: orders of operators, and the
changes that they made (contract §9, §11)."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STATUS_INTERVAL: Final = 5.0  # seconds between two records of a worker, at most
SILENT_AFTER: Final = timedelta(seconds=3 * STATUS_INTERVAL)

WorkerState = Literal["active", "standby", "draining", "stopped"]
GateState = Literal["open", "closed", "opening"]
GateCause = Literal["credentials", "outage"]
OrderKind = Literal["pause", "resume", "replaying", "replayed", "discarding", "discarded"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Order(_Model):
    """One message. `pause` and `resume` are obeyed; the others are the audit trail: a change of the
    dead letters begins, and has ended."""

    order: OrderKind
    by: str = Field(description="user@host of the person who gave it.")
    why: str = Field("", description="The reason that was given.")
    at: AwareDatetime
    count: int | None = Field(None, description="Dead letters that were replayed or discarded.")
    run: str | None = Field(None, description="Which change of dead letters, from its begin to its end.")
    cause: str | None = Field(None, description="What the letters died of.")
    outcome: str | None = Field(None, description="What became of the replays.")

    @classmethod
    def now(cls, order: OrderKind, why: str, *, by: str, **more: Any) -> Self:
        """An order of this moment."""
        return cls(order=order, by=by, why=why, at=datetime.now(UTC), **more)

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(exclude_none=True).encode()


class Pause(_Model):
    """A pause by order, as the workers tell it."""

    by: str
    why: str
    since: AwareDatetime


def standing_pause(orders: Sequence[Order]) -> Pause | None:
    """The pause in force after these orders, the oldest first: the last `pause` or `resume` decides."""
    last = next((each for each in reversed(orders) if each.order in ("pause", "resume")), None)
    if last is None or last.order == "resume":
        return None
    return Pause(by=last.by, why=last.why, since=last.at)


class GateStatus(_Model):
    """The gate to Marketing Cloud (contract §6). `why` and `since` are null while it is open, and `cause` is
    left out: an outage heals by itself, refused credentials do not."""

    state: GateState
    why: str | None = None
    since: AwareDatetime | None = None
    cause: GateCause | None = Field(None, exclude_if=lambda cause: cause is None)


class Blocked(_Model):
    """A queue of the worker's own that takes no messages."""

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
    partitions: list[int] = Field([], description="Those it is the active consumer of; none without.")
    gate: GateStatus
    paused: Pause | None = Field(None, description="The pause that was ordered, while it stands.")
    blocked: list[Blocked] = Field([], description="Its own queues that take nothing.")
    pace: float | None = Field(None, description="Calls a second that a speed limit leaves it.")
    in_flight: int = Field(description="Requests that were delivered and are not settled.")
    rate_per_second: float = Field(description="Requests settled a second, lately.")
    reconnects: int = Field(description="Times that the consuming connection was opened again.")

    @property
    def place(self) -> str:
        """host:pid"""
        return self.worker.rpartition(":")[0]

    @property
    def condition(self) -> str:
        """Its state, in which a pause or a blocked queue goes first."""
        if self.state == "draining":
            return self.state
        return "paused" if self.paused else "blocked" if self.blocked else self.state

    def is_silent(self, now: datetime) -> bool:
        """Whether the worker should have said something since: it has ended, or is cut off."""
        return now - self.at > SILENT_AFTER

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(by_alias=True).encode()
