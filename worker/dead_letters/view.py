"""One dead letter, for people to read: nothing of its secrets unless they ask for it."""

import json
from datetime import date, datetime
from typing import Any

from worker.broker.encryption import why_closed
from worker.contract.registration import SECRET_FIELDS, MalformedBody, parse_object
from worker.contract.secrets import MASK, secrets_in
from worker.dead_letters.letter import Letter, open_body

_PROPERTIES = (
    "message_id",
    "correlation_id",
    "reply_to",
    "content_type",
    "content_encoding",
    "type",
    "app_id",
    "user_id",
)
_SECRET_NAMES = frozenset(name.lower() for name in SECRET_FIELDS)
# What is misspelt is not known as a field, and holds the same secret.
_SECRET_WORDS = ("token", "secret", "password", "key")
ROUTING_KEYS = "routingkeys"  # the broker's, in x-death


def view(letter: Letter, *, reveal: bool) -> dict[str, Any]:
    """The summary, and all properties, headers and the body: plain JSON values. A body that is no JSON
    object may hold a secret anywhere, so without `reveal` only its size is told."""
    properties = letter.delivery.properties
    closed = why_closed(letter.delivery.body)
    body = b"" if closed else open_body(letter.delivery)
    secrets = [] if reveal else secrets_in(body)

    def shown(value: object, name: str = "") -> Any:
        return _shown(value, name, secrets, reveal=reveal)

    document: dict[str, Any] = {
        **{name: shown(value) for name, value in letter.summary().items()},
        "properties": {name: shown(text) for name in _PROPERTIES if (text := properties.text(name))},
        "headers": {name: shown(properties.header(name), name) for name in properties.header_names()},
        "bodyBytes": len(letter.delivery.body),
    }
    if closed:
        return document | {"bodyProblem": closed}
    try:
        document["body"] = shown(parse_object(body))
    except MalformedBody as problem:
        document["bodyProblem"] = str(problem)
        if reveal:
            document["bodyText"] = body.decode(errors="backslashreplace")
    return document


def _shown(value: object, name: str, secrets: list[str], *, reveal: bool) -> Any:
    if not reveal and _is_secret(name) and value not in (None, ""):
        return MASK
    if isinstance(value, dict):
        return {str(k): _shown(v, str(k), secrets, reveal=reveal) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(v, name, secrets, reveal=reveal) for v in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode(errors="backslashreplace")
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _is_secret(name: str) -> bool:
    bare = name.lower().replace("_", "").replace("-", "")
    return bare in _SECRET_NAMES or (bare != ROUTING_KEYS and any(word in bare for word in _SECRET_WORDS))


def as_text(document: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    plain = {k: v for k, v in document.items() if k not in {"properties", "headers", "body", "bodyText"}}
    lines = [f"{name:<16} {_inline(value)}" for name, value in plain.items()]
    for title in ("properties", "headers"):
        lines.append(f"{title}:" if document[title] else f"{title:<16} -")
        lines += [f"  {name}: {_inline(value)}" for name, value in document[title].items()]
    if "body" in document:
        lines += ["body:", *json.dumps(document["body"], ensure_ascii=False, indent=2).splitlines()]
    if "bodyText" in document:
        lines += ["body:", *document["bodyText"].splitlines()]
    return lines


def _inline(value: object) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
