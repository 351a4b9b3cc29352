"""One dead letter for display. Without `reveal`, only fields and headers that hold no secret show their
values; all others show their type and length."""

import json
from collections.abc import Collection, Mapping, Sized
from datetime import datetime
from typing import Any, Final

from worker.amqp.consumer import COUNTS
from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import ATTRIBUTES, ENDPOINT_URL, PLATFORM_NAME, PUBLIC_FIELDS
from worker.contract.secrets import SecretMask, split_url
from worker.contract.words import PUBLIC_HEADERS
from worker.dead_letters.letter import BROKERS_HEADER, BROKERS_WORDS, Letter

PUBLIC: Final = ("message_id", "correlation_id", "reply_to", "content_type", "content_encoding", "user_id")
PROPERTIES: Final = (*PUBLIC, "type", "app_id")
SHOWN_HEADERS: Final = PUBLIC_HEADERS | BROKERS_WORDS | COUNTS | {BROKERS_HEADER}
DEATH_FIELDS: Final = frozenset(
    {"count", "exchange", "original-expiration", "queue", "reason", "routing-keys", "time"}
)
_KINDS: Final = {bool: "boolean", int: "number", float: "number", str: "string", dict: "object"}


def view(letter: Letter, *, reveal: bool) -> dict[str, Any]:
    """The facts, properties, headers and body as JSON values."""
    properties = letter.delivery.properties
    body = b"" if letter.closed else letter.delivery.body
    texts = {name: properties.text(name) for name in PROPERTIES}
    document: dict[str, Any] = letter.shown() | {
        "properties": {name: text for name, text in texts.items() if text},
        "headers": {name: properties.header(name) for name in properties.header_names()},
        "bodyBytes": letter.delivery.size,
    }
    try:
        document |= {"bodyProblem": letter.closed} if letter.closed else {"body": parse_object(body)}
    except MalformedBody as problem:
        document["bodyProblem"] = str(problem)
        if reveal:
            document["bodyText"] = body
    if not reveal:
        _hide(document, SecretMask.of_body(body))
    shown: dict[str, Any] = _plain(document)
    return shown


def _hide(document: dict[str, Any], mask: SecretMask) -> None:
    """Mask the body's secrets in public values, and describe all other values."""

    def known(value: object, names: Collection[str] = ()) -> Any:
        """A public value, masked; of an object only the fields `names`."""
        if isinstance(value, list) and names:
            return [known(each, names) for each in value]
        if isinstance(value, dict) and names:
            pairs = value.items()
            return {name: known(each, names) if name in names else describe(each) for name, each in pairs}
        if isinstance(value, str | datetime):
            return mask(str(value))
        return value if isinstance(value, bool | int | float) else describe(value)

    document["properties"] = known(document["properties"], PUBLIC)
    document["headers"] = {
        name: known(value, DEATH_FIELDS) if name in SHOWN_HEADERS else describe(value)
        for name, value in document["headers"].items()
    }
    if body := document.get("body"):
        document["body"] = known(body, {PLATFORM_NAME})
        if isinstance(attributes := body.get(ATTRIBUTES), dict):
            if isinstance(url := attributes.get(ENDPOINT_URL), str):
                attributes[ENDPOINT_URL] = split_url(url)[0]
            document["body"][ATTRIBUTES] = known(attributes, PUBLIC_FIELDS)


def describe(value: Any) -> Any:
    """The type and length of a value: `<string of 11>`. None and `""` are unchanged."""
    if value is None or value == "":
        return value
    name = _KINDS.get(type(value), type(value).__name__)
    return f"<{name} of {len(value)}>" if isinstance(value, Sized) else f"<{name}>"


def _plain(value: object) -> Any:
    """A header's or body's value as a JSON value."""
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="backslashreplace")
    return str(value).encode(errors="backslashreplace").decode()  # AMQP texts need not be UTF-8


def as_text(document: Mapping[str, Any]) -> list[str]:
    """The document as lines for a terminal."""
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict) and value:
            lines += [f"{name}:", *json.dumps(value, ensure_ascii=False, indent=2).splitlines()]
        elif name != "cause":
            lines += f"{name:<16} {'-' if value in (None, '', {}) else value}".splitlines()
    return lines
