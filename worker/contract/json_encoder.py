"""The one way to write JSON."""

import json
from collections.abc import Mapping
from typing import Any

import pydantic_core

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(document: Mapping[str, Any]) -> bytes:
    """A document as UTF-8, without spaces. Lone surrogates, which UTF-8 cannot hold, become question marks:
    ids come from AMQP properties, where a hostile sender can place them."""
    try:
        return pydantic_core.to_json(document)
    except pydantic_core.PydanticSerializationError:
        return _encode(document).encode(errors="replace")
