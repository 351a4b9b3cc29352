"""JSON Schemas (2020-12) of the messages, from the models that validate them."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from worker.contract.platforms import PLATFORMS, Platform
from worker.contract.reply import ErrorEnvelope, Result

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{model}"

Schema = dict[str, Any]


def registration_schemas() -> dict[str, Schema]:
    """The body of a request for each platform, by the schema's name."""
    return {schema_name(platform): _registration(platform) for platform in PLATFORMS.values()}


def schema_name(platform: Platform) -> str:
    """`MessengerRegistration` and so on."""
    return f"{platform.name.capitalize()}Registration"


def reply_schemas(ref_template: str = _REF) -> dict[str, Schema]:
    """The result and the error envelope, by name, with the models that they refer to."""
    return schemas_of((Result, ErrorEnvelope), ref_template)


def schemas_of(models: Iterable[type[BaseModel]], ref_template: str) -> dict[str, Schema]:
    """The schemas of these models, by name, with those of the models that they refer to."""
    schemas: dict[str, Schema] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=ref_template)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return schemas


def json_schemas() -> Schema:
    """One document: `Registration`, `Result`, `ErrorEnvelope` and `Reply` under `$defs`."""
    definitions = registration_schemas()
    mapping = {platform.name: _REF.format(model=schema_name(platform)) for platform in PLATFORMS.values()}
    registration = {
        "title": "Registration",
        "description": "The body of a request: the JSON object of POST /ott/v1/registration.",
        "oneOf": [{"$ref": ref} for ref in mapping.values()],
        "discriminator": {"propertyName": "ottPlatformName", "mapping": mapping},
    }
    reply = {
        "title": "Reply",
        "description": "The body of a reply: a result or an error envelope.",
        "oneOf": [{"$ref": _REF.format(model=model.__name__)} for model in (Result, ErrorEnvelope)],
    }
    return {
        "$schema": DIALECT,
        "title": "ott-registration-worker",
        "description": "The messages on the queues.",
        "$defs": {"Registration": registration, **definitions, "Reply": reply, **reply_schemas()},
    }


def _registration(platform: Platform) -> Schema:
    attributes = platform.attributes.model_json_schema()
    attributes.pop("title")
    attributes["description"] = "Fields besides these are kept and forwarded."
    return {
        "title": schema_name(platform),
        "type": "object",
        "properties": {
            "ottPlatformName": {"const": platform.name, "description": "The OTT network."},
            "ottPlatformAttributes": attributes,
        },
        "required": ["ottPlatformName", "ottPlatformAttributes"],
    }
