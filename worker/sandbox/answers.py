"""The bodies of Marketing Cloud's answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from worker.contract.json_body import to_json

TOKEN_ERRORS = "https://developer.salesforce.com/docs"  # noqa: S105 - the error_uri that the real one sends


def json_answer(
    status: int, document: Mapping[str, Any] | Sequence[Any], headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer that holds JSON."""
    return web.Response(
        body=to_json(document), status=status, headers=headers, content_type="application/json"
    )


def token_answer(status: int, document: Mapping[str, Any]) -> web.Response:
    """An answer of `/v2/token`."""
    return json_answer(status, document, {"Cache-Control": "no-store"})


def token_error(status: int, error: str, description: str) -> web.Response:
    """An OAuth 2.0 error, as `/v2/token` words it."""
    return token_answer(status, {"error": error, "error_description": description, "error_uri": TOKEN_ERRORS})


def rest_error(
    status: int, message: str, errorcode: int = 0, headers: Mapping[str, str] | None = None, **more: Any
) -> web.Response:
    """An error of the REST API."""
    document = {"message": message, "errorcode": errorcode, "documentation": "", **more}
    return json_answer(status, document, headers)
