"""One dead letter, for people to read. Without `reveal` only fields and headers that hold no secret show
their values; everything else shows its type and length."""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, Final

from worker.amqp.consumer import COUNTS
from worker.contract.json_body import MalformedBody, parse_object
from worker.contract.platforms import ATTRIBUTES, ENDPOINT_URL, PLATFORM_NAME, PUBLIC_FIELDS
from worker.contract.secrets import SecretMask, without_query
from worker.contract.words import PUBLIC_HEADERS
from worker.dead_letters.letter import BROKERS_HEADER, BROKERS_WORDS, Letter

PUBLIC_PROPERTIES: Final = (
    "message_id",
    "correlation_id",
    "reply_to",
    "content_type",
    "content_encoding",
    "user_id",
)
OTHER_PROPERTIES: Final = ("type", "app_id")
DEATH_FIELDS: Final = frozenset(
    {"count", "exchange", "original-expiration", "queue", "reason", "routing-keys", "time"}
)


def view(letter: Letter, *, reveal: bool) -> dict[str, Any]:
    """The summary, and all properties, headers and the body: plain JSON values."""
    closed = letter.closed
    body = b"" if closed else letter.delivery.body
    shown = _Shown(body, reveal=reveal)
    properties = letter.delivery.properties
    document: dict[str, Any] = {
        **{name: shown.known(value) for name, value in letter.shown().items()},
        "properties": {
            name: shown.known(text) if name in PUBLIC_PROPERTIES else shown.unknown(text)
            for name in (*PUBLIC_PROPERTIES, *OTHER_PROPERTIES)
            if (text := properties.text(name))
        },
        "headers": {
            _plain(name): shown.header(name, properties.header(name)) for name in properties.header_names()
        },
        "bodyBytes": letter.delivery.size,
    }
    if closed:
        return document | {"bodyProblem": closed}
    try:
        document["body"] = shown.body(parse_object(body))
    except MalformedBody as problem:
        document["bodyProblem"] = str(problem)
        if reveal:
            document["bodyText"] = body.decode(errors="backslashreplace")
    return document


class _Shown:
    """Values as they are shown: all of them with `reveal`. Otherwise only those known to hold no secret, and
    the secrets of the body are masked even there."""

    def __init__(self, body: bytes, *, reveal: bool) -> None:
        self._reveal = reveal
        self._mask = SecretMask.of_body(body)

    def known(self, value: object) -> Any:
        if self._reveal:
            return _plain(value)
        if isinstance(value, str):
            return _plain(self._mask(value))
        return value if value is None or isinstance(value, bool | int | float) else describe(value)

    def unknown(self, value: object) -> Any:
        return _plain(value) if self._reveal else describe(value)

    def header(self, name: str, value: object) -> Any:
        if name in PUBLIC_HEADERS or name in BROKERS_WORDS or name in COUNTS:
            return self.known(value)
        if name == BROKERS_HEADER and isinstance(value, list):
            return [self._death(each) if isinstance(each, dict) else self.unknown(each) for each in value]
        return self.unknown(value)

    def body(self, document: Mapping[str, Any]) -> Any:
        shown = {_plain(name): self.unknown(value) for name, value in document.items()}
        if PLATFORM_NAME in document:
            shown[PLATFORM_NAME] = self.known(document[PLATFORM_NAME])
        if isinstance(attributes := document.get(ATTRIBUTES), dict):
            shown[ATTRIBUTES] = {_plain(name): self._attribute(name, attributes[name]) for name in attributes}
        return shown

    def _attribute(self, name: str, value: object) -> Any:
        if name not in PUBLIC_FIELDS:
            return self.unknown(value)
        is_url = name == ENDPOINT_URL and isinstance(value, str) and not self._reveal
        return self.known(without_query(str(value)) if is_url else value)

    def _death(self, death: Mapping[str, object]) -> Any:
        shown = {}
        for name, value in death.items():
            if name not in DEATH_FIELDS:
                shown[_plain(str(name))] = self.unknown(value)
            elif isinstance(value, list):
                shown[name] = [self.known(item) for item in value]
            else:
                shown[name] = self.known(_plain(value) if isinstance(value, datetime) else value)
        return shown


_KINDS: Final[tuple[tuple[Any, str, str], ...]] = (
    (bool, "boolean", ""),
    (int | float, "number", ""),
    (str, "string", "character"),
    (bytes | bytearray, "bytes", "byte"),
    (dict, "object", "field"),
    (list | tuple, "list", "item"),
)


def describe(value: Any) -> Any:
    """The type and the length of a value: `<string, 11 characters>`. None and `""` stay as they are."""
    if value is None or value == "":
        return value
    for kind, name, unit in _KINDS:
        if isinstance(value, kind):
            return f"<{name}, {len(value)} {unit}{'s'[: len(value) != 1]}>" if unit else f"<{name}>"
    return f"<{type(value).__name__}>"


def _plain(value: object) -> Any:
    """A header's or a body's value as JSON."""
    if isinstance(value, dict):
        return {_plain(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="backslashreplace")
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # an AMQP text need not be UTF-8
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def as_text(document: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    apart = ("cause", "properties", "headers", "body", "bodyText")
    plain = {name: value for name, value in document.items() if name not in apart}
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
