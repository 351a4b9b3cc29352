"""A request in a partition (contract §10): the router adds headers, and the partition's worker removes them
to restore the original request.

The headers are trusted because only workers may publish to a partition, and because the router removes
headers with these names from requests (contract §2). A request has all of them, a barrier only the epoch."""

from dataclasses import replace

from worker.amqp.consumer import COUNTS, Delivery
from worker.amqp.ledger import Message
from worker.amqp.properties import Properties, build
from worker.broker.request_message import is_from_operator, operator_headers
from worker.contract.words import (
    ARRIVED_AT_HEADER,
    BARRIER_TYPE,
    CAME_BY_HEADER,
    CAME_FROM_HEADER,
    EPOCH_HEADER,
    NO_MESSAGE_ID_HEADER,
    REPLAY_KEY,
    REQUEST_KEY,
    ROUTED_HEADERS,
)

# CC and BCC would route copies to other queues; the counts belong to the requests queue.
NOT_ROUTED = frozenset({"CC", "BCC", *COUNTS, *ROUTED_HEADERS})


def barrier(queue: str, epoch: int) -> Message:
    """The barrier of an epoch."""
    return Message("", queue, build(type=BARRIER_TYPE, headers={EPOCH_HEADER: epoch}), b"", external=True)


def routed(
    delivery: Delivery, queue: str, epoch: int, arrived_at: int, entry: str, *, reduced: bool = False
) -> Message:
    """A request for a partition: without a priority, which could let it overtake others on RabbitMQ 4, and
    without an expiration, because it was consumed in time. `reduced`: with the worker's headers alone."""
    original = delivery.properties.reduced() if reduced else delivery.properties
    by_replay = is_from_operator(delivery, entry)
    headers: dict[str, str | int | bool] = {
        EPOCH_HEADER: epoch,
        ARRIVED_AT_HEADER: arrived_at,
        CAME_BY_HEADER: REPLAY_KEY if by_replay else REQUEST_KEY,
    }
    if user := original.text("user_id"):  # RabbitMQ refuses the `user_id` of another user
        headers[CAME_FROM_HEADER] = user
    if not original.text("message_id"):
        headers[NO_MESSAGE_ID_HEADER] = True  # Publisher adds one
    # Release 1.1.0, which may share the partitions during an update, recognizes a barrier by its type.
    mark = {"type": None} if original.text("type") == BARRIER_TYPE else {}
    without = NOT_ROUTED if by_replay else NOT_ROUTED | operator_headers(original)
    properties = original.changed(
        headers, without=without, user_id=None, expiration=None, priority=None, **mark
    )
    return Message("", queue, properties.persistent(), delivery.body, external=True)


def is_barrier(properties: Properties) -> bool:
    """Whether it is a barrier, by the two headers that a publisher cannot set."""
    return properties.has_header(EPOCH_HEADER) and not properties.has_header(CAME_BY_HEADER)


def epoch_of(properties: Properties) -> int | None:
    """The epoch of a barrier or a routed request, None for any other message."""
    return _number(properties.header(EPOCH_HEADER))


def arrival_of(properties: Properties) -> int | None:
    """When the request arrived at the router, in microseconds since the epoch."""
    return _number(properties.header(ARRIVED_AT_HEADER))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def as_it_came(delivery: Delivery, entry: str) -> Delivery:
    """The request as it arrived at the router. Settling it settles the delivery."""
    properties = delivery.properties
    by_replay = properties.header(CAME_BY_HEADER) == REPLAY_KEY
    given = properties.header(CAME_FROM_HEADER)
    user = given if isinstance(given, str) else None
    without_id = {"message_id": None} if properties.header(NO_MESSAGE_ID_HEADER) is True else {}
    return replace(
        delivery,
        properties=properties.changed(without=ROUTED_HEADERS, user_id=user, **without_id),
        exchange=entry,
        routing_key=REPLAY_KEY if by_replay else REQUEST_KEY,
    )
