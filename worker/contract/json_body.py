"""JSON of messages: a strict reader and a fast writer (contract §3). The reader gives the same result on
every interpreter, and quotes nothing from a body."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import pydantic_core

_SHALLOW = 128
"""Brackets; so few cannot exceed either parser's depth limit, so most bodies need no depth check."""

_LONGEST_NUMBER = 1000
"""Characters; below the number of digits that an interpreter refuses to convert."""


MOST_VALUES = 10_000
"""JSON values of one body (contract §2): 1 MiB of small ones would block the event loop for half a second."""


class MalformedBody(ValueError):
    """The body is not acceptable JSON. The text says why in one line and quotes nothing from the body."""


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; raises `MalformedBody` for anything else (contract §3).

    Refused besides broken JSON: a byte order mark, invalid UTF-8, duplicate keys, `NaN` and `Infinity`,
    lone surrogates, numbers longer than 1,000 characters or beyond a double, more than about 200 levels,
    more than 10,000 values."""
    if not body.strip():
        raise MalformedBody("The body is empty; send the registration as a JSON object.")
    text = _decode(body)
    brackets = body.count(b"[") + body.count(b"{")
    if brackets + body.count(b",") >= MOST_VALUES and _count_values(body) > MOST_VALUES:
        raise MalformedBody(f"The body holds more than {MOST_VALUES:,} JSON values.")
    if brackets > _SHALLOW:
        _check_with_second_parser(body, "The body is not valid JSON, or is nested too deeply.")
    try:
        document = _DECODER.decode(text)
    except MalformedBody:
        raise
    except (ValueError, RecursionError):
        raise MalformedBody("The body is not valid JSON.") from None
    if b"\\u" in body:
        _check_with_second_parser(body, "The body holds a lone surrogate; send valid Unicode.")
    if type(document) is not dict:
        raise MalformedBody("The body is not a JSON object.")
    return document


def _count_values(body: bytes) -> int:
    """The number of values in well-formed JSON, without parsing it."""
    quotes = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if quotes.count(b'"') > 4 * MOST_VALUES:  # each value has at most two strings: itself and its key
        return MOST_VALUES + 1
    outside = b"0".join(quotes.split(b'"')[::2]).translate(None, b" \t\r\n")
    containers = outside.count(b"[") + outside.count(b"{") - outside.count(b"[]") - outside.count(b"{}")
    return 1 + outside.count(b",") + containers


def _decode(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedBody("The body is not valid UTF-8.") from None
    if text.startswith("\ufeff"):
        raise MalformedBody("The body starts with a byte order mark; send UTF-8 without one.")
    return text


def _check_with_second_parser(body: bytes, problem: str) -> None:
    """The Rust parser, unlike the standard one, has a fixed depth limit and refuses lone surrogates."""
    try:
        pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise MalformedBody(problem) from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise MalformedBody("The body holds an object with a duplicate key.")
    return document


def _integer(literal: str) -> int:
    _float(literal)
    return int(literal)


def _float(literal: str) -> float:
    if len(literal) > _LONGEST_NUMBER or math.isinf(number := float(literal)):
        raise MalformedBody("The body holds a number that is too long or too large.")
    return number


def _constant(_literal: str) -> NoReturn:
    raise MalformedBody("The body holds NaN or Infinity, which are not JSON.")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=asdict).encode


def to_json(document: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """A document, which may contain dataclasses, as UTF-8 without spaces. Lone surrogates become question
    marks, because UTF-8 cannot encode them: a hostile sender can place them in AMQP properties, such as
    ids."""
    try:
        return pydantic_core.to_json(document)
    except pydantic_core.PydanticSerializationError:
        return _encode(document).encode(errors="replace")
