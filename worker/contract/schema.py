"""The contract for machines: JSON Schemas (2020-12) of the messages, from the models that validate them; and
the AsyncAPI 3.0 document of one deployment (`asyncapi.json`)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from worker.contract.platforms import ATTRIBUTES, PLATFORM_NAME, PLATFORMS, Platform
from worker.contract.reply import ErrorEnvelope, Result
from worker.contract.settlement import JournalRecord
from worker.contract.status import Order, WorkerStatus

_TEMPLATE = Path(__file__).with_name("asyncapi.json")
_DEFS = "#/$defs/{model}"
_COMPONENTS = "#/components/schemas/{model}"

Schema = dict[str, Any]


def json_schemas() -> Schema:
    """One document: `Registration`, `Result`, `ErrorEnvelope` and `Reply` under `$defs`."""
    mapping = {name: _DEFS.format(model=schema_name(platform)) for name, platform in PLATFORMS.items()}
    registration = {
        "title": "Registration",
        "description": "The body of a request: the JSON object of POST /ott/v1/registration.",
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": PLATFORM_NAME, "mapping": mapping},
    }
    replies = (Result, ErrorEnvelope)
    reply = {
        "title": "Reply",
        "description": "The body of a reply: a result or an error envelope.",
        "oneOf": [{"$ref": _DEFS.format(model=model.__name__)} for model in replies],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ott-registration-worker",
        "description": "The messages on the queues.",
        "$defs": {
            "Registration": registration,
            **_registrations(),
            "Reply": reply,
            **_schemas_of(replies, _DEFS),
        },
    }


def asyncapi(prefix: str, version: str) -> Schema:
    """The document for the broker objects below `prefix`, as the worker sees them."""
    document: Schema = _filled(json.loads(_TEMPLATE.read_bytes()), prefix, version)
    schemas, registrations = document["components"]["schemas"], _registrations()
    schemas["Registration"]["oneOf"] = [{"$ref": _COMPONENTS.format(model=name)} for name in registrations]
    models = (Result, ErrorEnvelope, JournalRecord, WorkerStatus, Order)
    schemas |= {**registrations, **_schemas_of(models, _COMPONENTS)}
    return document


def schema_name(platform: Platform) -> str:
    """`MessengerRegistration` and so on."""
    return f"{platform.name.capitalize()}Registration"


def _registrations() -> dict[str, Schema]:
    """The body of a request for each platform, by the schema's name."""
    return {schema_name(platform): _registration(platform) for platform in PLATFORMS.values()}


def _registration(platform: Platform) -> Schema:
    attributes = platform.attributes.model_json_schema()
    attributes.pop("title")
    attributes["description"] = "Fields besides these are kept and forwarded."
    return {
        "title": schema_name(platform),
        "type": "object",
        "properties": {
            PLATFORM_NAME: {"const": platform.name, "description": "The OTT network."},
            ATTRIBUTES: attributes,
        },
        "required": [PLATFORM_NAME, ATTRIBUTES],
    }


def _schemas_of(models: Iterable[type[BaseModel]], ref_template: str) -> dict[str, Schema]:
    """The schemas of these models, by name, with those of the models that they refer to."""
    schemas: dict[str, Schema] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=ref_template)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return schemas


def _filled(node: Any, prefix: str, version: str) -> Any:
    if isinstance(node, dict):
        return {name: _filled(value, prefix, version) for name, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, prefix, version) for value in node]
    return node.replace("{prefix}", prefix).replace("{version}", version) if isinstance(node, str) else node
