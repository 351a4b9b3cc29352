"""The errors that users see. Every text is one line that says what to do and holds no secret.

`amqp` and `marketing_cloud` translate the errors of their client libraries. No other package sees those."""

from enum import Enum


class WorkerError(Exception):
    """An error that the user can act on."""

    exit_code = 1


class UsageError(WorkerError):
    """Wrong usage: the command line, a file, a value."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing or wrong; the text names the variable and what it must be."""


class BrokerUnreachable(WorkerError):
    """RabbitMQ does not answer, or refused the connection."""

    exit_code = 3


class Problem(Enum):
    """A fault of a broker object."""

    MISSING = "missing"
    FORBIDDEN = "forbidden"  # this user lacks the permission
    DIFFERS = "differs"  # it has other arguments


class TopologyError(WorkerError):
    """A queue, exchange or stream is missing, forbidden, or exists with other arguments: see `problem`."""

    exit_code = 3

    def __init__(self, text: str, problem: Problem = Problem.MISSING) -> None:
        super().__init__(text)
        self.problem = problem


class QueueInUse(WorkerError):
    """Another consumer or command uses a queue that allows only one at a time."""


class OutcomeUnknown(WorkerError, TimeoutError):
    """No answer came in time. The request may or may not be registered, now or later. Look up `request_id` in
    the journal, or send the request again; that is safe unless a newer one for the resource was sent
    since."""

    def __init__(self, request_id: str, why: str) -> None:
        super().__init__(f"{why}: the outcome of request {request_id} is unknown")
        self.request_id = request_id


class Unroutable(WorkerError):
    """The broker returned a mandatory message: it was routed to no queue."""


class PublishRefused(WorkerError):
    """The broker refused a message: the user may not publish there."""


class QueueFull(PublishRefused):
    """The queue rejects publishes because it is full."""


class Interrupted(WorkerError):
    """The user interrupted the command."""

    exit_code = 130
