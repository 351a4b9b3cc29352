"""The machine-readable contract: JSON Schemas (2020-12) from the models that validate messages, and the
AsyncAPI 3.0 document of one deployment (`asyncapi.json`)."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, TypeAdapter, create_model

from worker.contract.platforms import ATTRIBUTES, PLATFORM_NAME, PLATFORMS, Platform
from worker.contract.reply import REPLY
from worker.contract.settlement import JournalRecord
from worker.contract.status import Order, WorkerStatus

_TEMPLATE = Path(__file__).with_name("asyncapi.json")

Schema = dict[str, Any]


def json_schemas() -> Schema:
    """One document: `Registration`, `Result`, `ErrorEnvelope` and `Reply` under `$defs`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ott-registration-worker",
        "description": "The messages on the queues.",
        "$defs": _schemas("#/$defs/{model}", Registration=_registrations(), Reply=REPLY),
    }


def asyncapi(prefix: str, version: str) -> Schema:
    """The AsyncAPI document for the broker objects of `prefix`, from the worker's point of view."""
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in (("prefix", prefix), ("version", version)):
        text = text.replace(f"{{{name}}}", json.dumps(value)[1:-1])
    document: Schema = json.loads(text)
    models = {model.__name__: TypeAdapter(model) for model in (JournalRecord, WorkerStatus, Order)}
    schemas = _schemas("#/components/schemas/{model}", Registration=_registrations(), Reply=REPLY, **models)
    del schemas["Reply"]  # the messages name its two forms
    components = document["components"]["schemas"]
    schemas["Registration"] |= components["Registration"]  # whose discriminator has no mapping
    components |= schemas
    return document


def _registrations() -> TypeAdapter[Any]:
    """The body of a request: a union of the platforms' bodies."""
    bodies: Any = Union[tuple(map(_registration, PLATFORMS.values()))]  # noqa: UP007 - built from a table
    about = Field(
        title="Registration",
        description="The body of a request: the JSON object of POST /ott/v1/registration.",
        discriminator=PLATFORM_NAME,
    )
    return TypeAdapter(Annotated[bodies, about])


def _registration(platform: Platform) -> type[BaseModel]:
    """`MessengerRegistration` and so on."""
    fields: Schema = {
        PLATFORM_NAME: (Literal[platform.name], Field(description="The OTT network.")),
        ATTRIBUTES: (
            platform.attributes,
            Field(description="Fields besides these are kept and forwarded."),
        ),
    }
    return create_model(f"{platform.name.capitalize()}Registration", **fields)


def _schemas(ref_template: str, **named: TypeAdapter[Any]) -> Schema:
    """The schemas of these models by name, and those that they refer to."""
    mode: Literal["validation"] = "validation"
    adapters = [(name, mode, adapter) for name, adapter in named.items()]
    schemas, document = TypeAdapter.json_schemas(adapters, ref_template=ref_template)
    own = {name: schema for (name, _), schema in schemas.items() if "$ref" not in schema}
    return own | dict(document["$defs"])
