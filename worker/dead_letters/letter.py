"""A parsed dead letter, made by the worker or by the broker."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from worker.amqp.consumer import COUNTS, Delivery
from worker.amqp.properties import Properties
from worker.broker.encryption import DecryptionError, Encryptor, looks_encrypted
from worker.broker.request_message import account_of, as_of, operator_headers, request_id
from worker.contract import words
from worker.contract.registration import parse_registration
from worker.contract.secrets import SecretMask
from worker.contract.settlement import Resource, recorded_id
from worker.contract.timestamps import SKEW, microseconds, text_of
from worker.partitions.message import arrival_of, as_it_came

BROKERS_HEADER = "x-death"
BROKERS_WORDS = frozenset(
    f"x-{which}-death-{what}" for which in ("first", "last") for what in ("exchange", "queue", "reason")
)
LATEST = 2**57  # microseconds since the epoch; texts cannot hold a much later time
NAMED: Final = 20  # letters that are listed by name
_KEY = re.compile(r"[0-9a-f]{16}")
_PARTITION = re.compile(r"\.requests\.\d+\Z")
# The broker's reasons that have another name in contract §5.
BROKERS_REASONS = {"rejected": "oversize"}


Facts = dict[str, Any]
"""A dead letter in lists (contract §8): the object that `list --json` prints. `letter` is its own id, `id`
its request's, which the publisher chose and several letters may have. `reason` is one of contract §5 or the
broker's (`delivery_limit`, `expired`). A time is None if it is unknown."""

BY_ERROR: Final = ("reason", "error")
BY_CAUSE: Final = (*BY_ERROR, "ottPlatformName", "accountId", "cause")


class Letter:
    """One dead letter. Its body is decrypted if there is a key, else only its headers are read. Creating it
    never raises, whatever it holds.

    `facts` may hold secrets: use `shown` to display them. `id` is the request's. `identity`, the letter's id
    and a digest of everything, distinguishes it from all others, and from itself before a change. A replay is
    judged by `received_after` (microseconds since the epoch): it is never later than the request's arrival.

    `delivery` holds the decrypted body, unless `closed` says why it cannot be read. `properties` are the
    delivery's, without operators' headers that a publisher set (contract §2)."""

    def __init__(self, delivery: Delivery, encryptor: Encryptor, default_account: str | None) -> None:
        digest = _digest(delivery)
        self.delivery = delivery
        self.identity = (_key(delivery) or digest, digest)
        self.was_sealed = looks_encrypted(delivery.body) and _is_workers(delivery)
        self.closed = ""
        if delivery.oversize:
            self.closed = f"The body is larger than OTT_MAX_BODY_BYTES allows: {delivery.size} bytes"
        try:
            if self.was_sealed:
                delivery.body = encryptor.decrypt(delivery.properties, delivery.body)
        except DecryptionError as error:
            self.closed = str(error)
        self.properties, arrived_at = _believed(delivery)
        properties, body = self.properties, delivery.body
        brokers_reason, died_at = _newest_death(properties)
        dead_at, reason = _moment(properties, words.DEAD_AT_HEADER), _text(properties, words.REASON_HEADER)
        if dead_at is None or reason is None:
            dead_at = died_at or dead_at
        received_at, self.received_after = _received(properties, arrived_at, died_at)
        request = parse_registration(body, content_type=None, content_encoding=None, max_bytes=len(body))
        account = account_of(properties) or default_account
        self.resource = Resource.named(account, request.platform, request.resource_id)
        recorded = _text(properties, words.REQUEST_ID_HEADER)
        self.id = recorded or request_id(replace(delivery, properties=properties))
        self.facts: Facts = {
            "letter": self.key,
            "id": recorded_id(self.id),
            "reason": reason or BROKERS_REASONS.get(brokers_reason, brokers_reason),
            "error": _text(properties, words.ERROR_HEADER) or "",
            "httpStatus": _integer(properties, words.HTTP_STATUS_HEADER),
            "attempts": _integer(properties, words.ATTEMPTS_HEADER) or 0,
            "accountId": account,
            "userId": _text(properties, words.USER_HEADER) or properties.text("user_id"),
            "ottPlatformName": request.platform,
            "resourceId": request.resource_id and recorded_id(request.resource_id),
            "receivedAt": None if received_at is None else text_of(received_at),
            "deadAt": None if dead_at is None else text_of(dead_at),
            "replays": _integer(properties, words.REPLAY_COUNT_HEADER) or 0,
        }

    @property
    def key(self) -> str:
        """The letter's own id."""
        return self.identity[0]

    @property
    def true_after(self) -> int:
        """The time to compare with newer registrations: `x-ott-as-of` if it has one, else
        `received_after`."""
        try:
            moment = as_of(self.properties)
        except ValueError:
            moment = None
        return self.received_after if moment is None else max(0, min(moment, self.received_after))

    def shown(self) -> Facts:
        """The facts for display: secrets of the body are masked, and characters that UTF-8 cannot encode are
        escaped. `cause` is a hash of reason, error, platform and account."""
        mask = SecretMask.of_body(b"" if self.closed else self.delivery.body)
        shown = dict(self.facts)
        ids = {"id": self.id, "resourceId": self.resource and self.resource.id}  # whole: cut when masked
        for name in ("id", "reason", "error", "accountId", "userId", "resourceId"):
            if text := ids.get(name) or shown[name]:
                text = mask(text).encode(errors="backslashreplace").decode()
                shown[name] = recorded_id(text) if name in ids else text
        shown["cause"] = _cause_key(*(shown[name] for name in BY_CAUSE[:-1]))
        return shown


@lru_cache(maxsize=1000)
def _cause_key(*facts: str | None) -> str:
    text = "\x00".join(fact or "" for fact in facts)
    return blake2b(text.encode(), digest_size=6).hexdigest()


def causes_of(letters: Iterable[Facts], by: Sequence[str]) -> list[dict[str, Any]]:
    """The letters grouped by the facts `by`: these facts, the `count`, and the times of the `first` and
    `last` letter. The largest group comes first; of equal ones the latest."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for letter in letters:
        died = groups.setdefault(tuple(letter[name] for name in by), [])
        died.append(letter["deadAt"] or "")
    causes = [
        {
            **dict(zip(by, common, strict=True)),
            "count": len(died),
            "first": min(filter(None, died), default=None),
            "last": max(died) or None,
        }
        for common, died in groups.items()
    ]
    return sorted(causes, key=lambda cause: (cause["count"], cause["last"] or ""), reverse=True)


def few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def is_brokers(delivery: Delivery) -> bool:
    """Whether the broker dead-lettered the message. The broker keeps the routing key; the worker publishes
    dead letters without one."""
    return bool(delivery.exchange and delivery.routing_key)


def _key(delivery: Delivery) -> str:
    """The id that the worker gave the letter; `""` if RabbitMQ or release 1.1.0 made it."""
    key = "" if is_brokers(delivery) else _text(delivery.properties, words.LETTER_HEADER) or ""
    return key if _KEY.fullmatch(key) else ""


def _digest(delivery: Delivery) -> str:
    """16 hexadecimal digits of a hash of the letter, without its delivery counts. They begin with a letter
    other than e, as the worker's own ids do (`new_letter_id`)."""
    properties = delivery.properties.canonical(without=COUNTS)
    parts = (delivery.exchange, delivery.routing_key, str(delivery.size))
    holds = blake2b(digest_size=9, person=b"ott-letter")
    for part in (*(text.encode(errors="replace") for text in parts), properties, delivery.body):
        holds.update(len(part).to_bytes(8) + part)
    digest = holds.digest()
    return "abcdf"[digest[8] % 5] + digest[:8].hex()[1:]


def _is_workers(delivery: Delivery) -> bool:
    """Whether the worker or an operator wrote the body. A publisher can make a body look encrypted."""
    return not is_brokers(delivery) or delivery.routing_key == words.REPLAY_KEY


def _believed(delivery: Delivery) -> tuple[Properties, int | None]:
    """The properties without operators' headers that a publisher set; and when the request arrived at the
    router, if the broker dead-lettered it from a partition, with the router's headers (contract §2, §10)."""
    arrived_at = None
    if _PARTITION.search(delivery.routing_key) and not _is_workers(delivery):
        arrived_at = arrival_of(delivery.properties)
        delivery = as_it_came(delivery, delivery.exchange)
    properties = delivery.properties
    if _is_workers(delivery):
        return properties, None
    return properties.changed(without=operator_headers(properties)), arrived_at


def _received(properties: Properties, arrived_at: int | None, died_at: int | None) -> tuple[int | None, int]:
    """When the request was received, and the earliest time at which it may have been. If the worker did not
    settle it, its dead-lettering is near enough, because no newer request for its resource was settled
    before. Else its timestamp is used."""
    if arrived_at is not None and 0 < arrived_at < LATEST:
        return arrived_at, arrived_at
    stamped = _moment(properties, words.RECEIVED_AT_HEADER)
    if stamped is not None:
        return stamped, max(0, stamped)
    published_at = int.from_bytes(properties.raw("timestamp"), "big") * 1_000_000
    near = died_at or (published_at if 0 < published_at < LATEST else None)
    # Another machine's clock set this time. If it is too late, a replay overwrites a newer registration.
    # Without any time the letter counts as the oldest of all.
    return near, max(0, (near or 0) - SKEW)


def _newest_death(properties: Properties) -> tuple[str, int | None]:
    """The reason and the time (to the second) of the last death that the broker recorded."""
    deaths = properties.header(BROKERS_HEADER)
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(newest, dict):
        return "unknown", None
    time = newest.get("time")
    at = int(time.replace(tzinfo=UTC).timestamp()) * 1_000_000 if isinstance(time, datetime) else None
    return str(newest.get("reason") or "unknown"), at


def _text(properties: Properties, name: str) -> str | None:
    value = properties.header(name)
    return value if isinstance(value, str) and value else None


def _integer(properties: Properties, name: str) -> int | None:
    value = properties.header(name)
    return value if isinstance(value, int) else None


def _moment(properties: Properties, name: str) -> int | None:
    value = _text(properties, name)
    return None if value is None else microseconds(value)
