"""Constants of the wire: headers, routing keys, statuses, reasons, error codes (contract §2 to §5)."""

from typing import Final, Literal, get_args

Status = Literal["registered", "rejected", "failed", "superseded"]
Reason = Literal["invalid", "rejected", "exhausted", "forbidden", "oversize"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

# Routing keys. Only a request with the key `replay` comes from an operator.
REQUEST_KEY: Final = "request"
REPLAY_KEY: Final = "replay"
CONTROL_KEY: Final = "control"  # reaches the control stream

# Headers of a request.
ACCOUNT_HEADER: Final = "x-ott-account-id"
AS_OF_HEADER: Final = "x-ott-as-of"  # when the request's data was true
PUBLISHERS_HEADERS: Final = frozenset({ACCOUNT_HEADER, AS_OF_HEADER})

# Headers of a replay: only operators may set them.
RECEIVED_AT_HEADER: Final = "x-ott-received-at"
REQUEST_ID_HEADER: Final = "x-ott-request-id"
REPLAY_COUNT_HEADER: Final = "x-ott-replay-count"
REPLAY_FORCE_HEADER: Final = "x-ott-replay-force"
REPLAY_AT_HEADER: Final = "x-ott-replay-at"
REPLAY_OF_HEADER: Final = "x-ott-replay-of"
REPLAY_REASON_HEADER: Final = "x-ott-replay-reason"  # the reason of the dead letter

# Headers of a dead letter.
LETTER_HEADER: Final = "x-ott-letter"  # the letter's own id
USER_HEADER: Final = "x-ott-user-id"  # the request's property `user_id`: the RabbitMQ user that published it
REASON_HEADER: Final = "x-ott-reason"
ERROR_HEADER: Final = "x-ott-error"
ATTEMPTS_HEADER: Final = "x-ott-attempts"
DEAD_AT_HEADER: Final = "x-ott-dead-at"
HTTP_STATUS_HEADER: Final = "x-ott-http-status"  # of Marketing Cloud's last answer
ENCRYPTION_KEY_HEADER: Final = "x-ott-sealed"

# Headers of a reply.
REPLY_REFUSED_HEADER: Final = "x-ott-reply-refused"
UNROUTABLE: Final = "unroutable"
NOT_ALLOWED: Final = "not-allowed"

# Set if RabbitMQ refused a message with its publisher's headers and properties.
REDUCED_HEADER: Final = "x-ott-reduced"

# Headers of a journal record.
CLOCK_HEADER: Final = "x-ott-clock"

OWN_HEADERS: Final = "x-ott-"  # the prefix of every header of the worker
# Every header above may be shown. Define a header that may hold a secret below this line.
PUBLIC_HEADERS: Final = frozenset(value for name, value in vars().items() if name.endswith("_HEADER"))

# Headers that the router adds to a message for a partition: its epoch; the request's arrival (microseconds
# since the epoch), routing key, and `user_id`; and whether the request has no message id.
EPOCH_HEADER: Final = "x-ott-epoch"
ARRIVED_AT_HEADER: Final = "x-ott-arrived-at"
CAME_BY_HEADER: Final = "x-ott-came-by"
CAME_FROM_HEADER: Final = "x-ott-came-from"
NO_MESSAGE_ID_HEADER: Final = "x-ott-no-message-id"
ROUTED_HEADERS: Final = frozenset(
    {EPOCH_HEADER, ARRIVED_AT_HEADER, CAME_BY_HEADER, CAME_FROM_HEADER, NO_MESSAGE_ID_HEADER}
)

# Values of the property `type`.
REPLY_TYPE: Final = "ott.registration.reply"
JOURNAL_TYPE: Final = "ott.registration.journal"
STATUS_TYPE: Final = "ott.registration.status"
CONTROL_TYPE: Final = "ott.registration.control"
BARRIER_TYPE: Final = "ott.registration.barrier"
PARTITIONS_TYPE: Final = "ott.registration.partitions"

# Error codes (API document, "Possible Errors"; contract §3).
GENERIC: Final = 10000
WRONG_TYPE: Final = 10001
MISSING: Final = 10002
MALFORMED: Final = 10004
INVALID_VALUE: Final = 10005
AGGREGATE: Final = 10006
