"""The errors that people see. Every text is one line that says what to do and holds no secret.

Errors of the libraries below are translated where they arise, in `amqp` and `marketing_cloud`, and travel no
further.
"""

from enum import Enum


class WorkerError(Exception):
    """An error that the person at the terminal can act on."""

    exit_code = 1


class UsageError(WorkerError):
    """Wrong usage: the command line, a file, a value."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing or wrong; the text names the variable and what it must be."""


class BrokerUnreachable(WorkerError):
    """RabbitMQ does not answer, or turned the connection down."""

    exit_code = 3


class Problem(Enum):
    """A fault of a broker object."""

    MISSING = "missing"
    FORBIDDEN = "forbidden"  # this user may not use it so
    DIFFERS = "differs"  # it has other arguments


class TopologyError(WorkerError):
    """A queue or exchange is missing, may not be used, or exists with other arguments: `problem`."""

    exit_code = 3

    def __init__(self, text: str, problem: Problem = Problem.MISSING) -> None:
        super().__init__(text)
        self.problem = problem


class QueueInUse(WorkerError):
    """Another consumer or command uses a queue that allows one at a time."""


class OutcomeUnknown(WorkerError, TimeoutError):
    """No answer came in time. The request may or may not be registered, now or later. Look up `request_id` in
    the journal, or send the request again; that is safe unless a newer one for the resource was sent
    since."""

    def __init__(self, request_id: str, why: str) -> None:
        super().__init__(f"{why}: the outcome of request {request_id} is unknown")
        self.request_id = request_id


class Unroutable(WorkerError):
    """The broker returned a mandatory message: no queue took it."""


class PublishRefused(WorkerError):
    """The broker refused a message: the user may not publish there."""


class QueueFull(PublishRefused):
    """The queue takes no more messages."""


class Interrupted(WorkerError):
    """Ended by the user."""

    exit_code = 130
