"""A settled request as one value (contract §4, §5).

The reply, the dead letter's headers, the journal record, the log line, the metrics and the trace are all
made from it, so that they cannot tell different stories.
"""

from typing import NamedTuple

from worker.contract.registration import FieldError
from worker.contract.words import Reason, Status


class Resource(NamedTuple):
    """A page or channel of one account; its requests are forwarded one at a time (contract §2)."""

    account: str | None
    platform: str
    id: str

    @classmethod
    def named(cls, account: str | None, platform: str | None, resource_id: str | None) -> "Resource | None":
        """The resource of a message, or None if the message does not name one."""
        return None if platform is None or resource_id is None else cls(account, platform, resource_id)


class Settlement(NamedTuple):
    """The outcome of a request. It holds no secret.

    `reason` is set exactly where the request is dead-lettered. `message`, `errorcode`, `documentation` and
    `errors` are those of the error envelope; they mean nothing for `registered`. Times are microseconds
    since the epoch. (A named tuple, because a frozen dataclass takes three times as long to make.)
    """

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
        """The time by which the newest request of a resource is told (contract §2)."""
        return self.received_at if self.as_of is None else self.as_of

    @property
    def resource(self) -> Resource | None:
        """The resource that the request names, as far as it could be read."""
        return Resource.named(self.account, self.platform, self.resource_id)
