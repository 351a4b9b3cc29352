"""The messages of PREFIX.control: orders of operators, and the changes that they made (contract §9, §11)."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

OrderKind = Literal["pause", "resume", "replaying", "replayed", "discarding", "discarded"]


class Order(BaseModel):
    """One message. `pause` and `resume` are obeyed; the others are the audit trail: a change of the
    dead letters begins, and has ended."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    order: OrderKind
    by: str = Field(description="user@host of the person who gave it.")
    why: str = Field(default="", description="The reason that was given.")
    at: AwareDatetime
    count: int | None = Field(default=None, description="Dead letters that were replayed or discarded.")
    run: str | None = Field(
        default=None, description="Which change of dead letters, from its begin to its end."
    )
    cause: str | None = Field(default=None, description="What the letters died of.")
    outcome: str | None = Field(default=None, description="What became of the replays.")

    @classmethod
    def now(cls, order: OrderKind, why: str, *, by: str, **more: Any) -> Self:
        """An order of this moment."""
        return cls(order=order, by=by, why=why, at=datetime.now(UTC), **more)

    def to_json(self) -> bytes:
        """The body of its message."""
        return self.model_dump_json(exclude_none=True).encode()


class Pause(BaseModel):
    """A pause by order, as the workers tell it."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    by: str
    why: str
    since: AwareDatetime


def standing_pause(orders: Iterable[Order]) -> Pause | None:
    """The pause in force after these orders, the oldest first: the last `pause` or `resume` decides."""
    pause = None
    for order in orders:
        if order.order == "pause":
            pause = Pause(by=order.by, why=order.why, since=order.at)
        elif order.order == "resume":
            pause = None
    return pause
