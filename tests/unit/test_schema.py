"""The documents for machines are valid, and say what the validator does."""

import json
from pathlib import Path
from typing import NotRequired, get_args, get_origin, get_type_hints

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

import worker.client
from tests.rig import LINE, MESSENGER
from worker.contract.platforms import PLATFORMS, SECRET_FIELDS
from worker.contract.schema import asyncapi, json_schemas

ASYNCAPI_SCHEMA = json.loads((Path(__file__).parent / "asyncapi_spec" / "3.0.0.json").read_text())
DOCUMENT = asyncapi("ott.registration", "1.0.0")


def component(name: str) -> Draft7Validator:
    """An embedded schema, with the others that it refers to."""
    return Draft7Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


@pytest.mark.parametrize("example", [MESSENGER, LINE])
def test_the_api_s_examples_follow_the_json_schema(example):
    schema = {"$ref": "#/$defs/Registration", "$defs": json_schemas()["$defs"]}
    Draft202012Validator(schema).validate(example)
    component("Registration").validate(example)


def test_secrets_are_marked_write_only():
    for platform in PLATFORMS.values():
        properties = json_schemas()["$defs"][platform.attributes.__name__]["properties"]
        marked = {field for field, about in properties.items() if about.get("writeOnly")}
        assert marked == SECRET_FIELDS & set(properties)


def test_flags_are_true_false_0_or_1():
    schema = json_schemas()["$defs"]["LineAttributes"]
    for flag in ("isActive", "isTransactional", "isTestChannel"):
        assert schema["properties"][flag]["enum"] == [True, False, 0, 1]
        assert flag in schema["required"]
    assert "customerConnectSecret" not in schema["required"]


def test_the_asyncapi_document_follows_asyncapi_s_own_json_schema():
    Draft7Validator(ASYNCAPI_SCHEMA).validate(DOCUMENT)


def test_every_broker_object_of_the_contract_is_in_the_asyncapi_document():
    channels = asyncapi("shop", "1.0.0")["channels"].values()
    addresses = {channel["address"] for channel in channels}
    queues = {f"shop.{name}" for name in ("requests", "replies", "dead", "journal", "status", "control")}
    assert addresses == {"request", None} | queues


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_attributes_are_typed(name):
    hints = get_type_hints(getattr(worker.client, f"{name.capitalize()}Registration"))
    assert get_args(hints["ottPlatformName"]) == (name,)
    attributes = hints["ottPlatformAttributes"]
    required = {info.alias: info.is_required() for info in PLATFORMS[name].attributes.model_fields.values()}
    typed = {
        field: get_origin(hint) is not NotRequired
        for field, hint in get_type_hints(attributes, include_extras=True).items()
    }
    assert typed == required
