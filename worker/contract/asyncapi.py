"""The AsyncAPI 3.0 document of one deployment (contract §1 to §5): `asyncapi.json`, with the schemas of the
messages."""

import json
from pathlib import Path
from typing import Any

from worker.contract.control import Order
from worker.contract.journal_record import JournalRecord
from worker.contract.reply import ErrorEnvelope, Result
from worker.contract.schema import registration_schemas, schemas_of
from worker.contract.status import WorkerStatus

_TEMPLATE = Path(__file__).with_name("asyncapi.json")
_SCHEMA = "#/components/schemas/{model}"


def asyncapi(prefix: str, version: str) -> dict[str, Any]:
    """The document for the broker objects below `prefix`, as the worker sees them."""
    document: dict[str, Any] = _filled(json.loads(_TEMPLATE.read_bytes()), prefix, version)
    models = schemas_of((Result, ErrorEnvelope, JournalRecord, WorkerStatus, Order), _SCHEMA)
    document["components"]["schemas"] |= {**registration_schemas(), **models}
    return document


def _filled(node: Any, prefix: str, version: str) -> Any:
    if isinstance(node, dict):
        return {name: _filled(value, prefix, version) for name, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, prefix, version) for value in node]
    return node.replace("{prefix}", prefix).replace("{version}", version) if isinstance(node, str) else node
