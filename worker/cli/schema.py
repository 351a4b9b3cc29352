"""`ott-worker schema`."""

import json
from typing import Annotated

import typer

from worker.cli import output
from worker.contract.schema import asyncapi as asyncapi_document
from worker.contract.schema import json_schemas
from worker.release import version


def schema(
    *,
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="The AsyncAPI 3 document instead of the JSON Schemas.")
    ] = False,
    prefix: Annotated[
        str, typer.Option(help="The prefix of all broker objects.", envvar="OTT_PREFIX")
    ] = "ott.registration",
) -> None:
    """Print the contract for machines: JSON Schemas, or an AsyncAPI document.

    Example: ott-worker schema --asyncapi > asyncapi.json"""
    release = version()
    document = asyncapi_document(prefix, release) if asyncapi else json_schemas()
    output.write(json.dumps(document, indent=2, ensure_ascii=False))
