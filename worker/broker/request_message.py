"""The data of a request outside its body: id, account and times (contract §2)."""

import hashlib

from worker.amqp.consumer import Delivery
from worker.amqp.properties import Properties
from worker.contract.timestamps import microseconds
from worker.contract.words import (
    ACCOUNT_HEADER,
    AS_OF_HEADER,
    OWN_HEADERS,
    PUBLISHERS_HEADERS,
    RECEIVED_AT_HEADER,
    REPLAY_KEY,
    REQUEST_ID_HEADER,
)

ACCOUNT_LENGTH = 64  # characters


def is_from_operator(delivery: Delivery, entry: str) -> bool:
    """Whether it has the routing key of replays, with which only operators may publish. With any other key,
    operators' headers are ignored and not passed on."""
    return delivery.routing_key == REPLAY_KEY and delivery.exchange == entry


def operator_headers(properties: Properties) -> frozenset[str]:
    """The headers of a request that only an operator may set."""
    own = (name for name in properties.header_names() if name.startswith(OWN_HEADERS))
    return frozenset(own) - PUBLISHERS_HEADERS


def request_id(delivery: Delivery, *, from_operator: bool = False) -> str:
    """The message id; without one, the request id of a replayed dead letter; else a digest of the message,
    the same for a redelivery."""
    properties = delivery.properties
    earlier = properties.header(REQUEST_ID_HEADER) if from_operator else None
    own_id = properties.text("message_id") or (earlier if isinstance(earlier, str) else None)
    if own_id:
        return own_id
    digest = hashlib.blake2b(delivery.body, digest_size=16, person=b"ott-request-id")
    if delivery.oversize:
        digest.update(b"%d" % delivery.size)
    for name in ("correlation_id", "reply_to", "timestamp"):
        digest.update(b"\0" + properties.raw(name))
    digest.update(b"\0" + str(properties.header(ACCOUNT_HEADER)).encode(errors="replace"))
    return digest.hexdigest()


def account_of(properties: Properties) -> str | None:
    """The account in the header; `""` without a header, None if it is not an account id."""
    if not properties.has_header(ACCOUNT_HEADER):
        return ""
    value = properties.header(ACCOUNT_HEADER)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or len(value) > ACCOUNT_LENGTH:
        return None
    account = value.strip()
    return account if account.isascii() and account.isprintable() else None


def as_of(properties: Properties) -> int | None:
    """When the request's data was true, in microseconds since the epoch; None without the header. Raises
    ValueError if the header is not a time with an offset."""
    if not properties.has_header(AS_OF_HEADER):
        return None
    value = properties.header(AS_OF_HEADER)
    moment = microseconds(value.strip().upper()) if isinstance(value, str) else None
    if moment is None:
        raise ValueError(f"{AS_OF_HEADER} is not a time with an offset")
    return moment


def first_received_at(properties: Properties) -> int | None:
    """When the original of a replay was received, in microseconds since the epoch; None if it is unknown."""
    value = properties.header(RECEIVED_AT_HEADER)
    return microseconds(value) if isinstance(value, str) else None
