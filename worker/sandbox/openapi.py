"""The OpenAPI 3.1 document of the sandbox."""

from importlib.metadata import PackageNotFoundError
from typing import Any

from pydantic import TypeAdapter

from worker.contract.reply import ValidationErrorEntry
from worker.contract.schema import registration_schemas
from worker.release import version
from worker.sandbox.faults import FAULTS

Document = dict[str, Any]

_REF = "#/components/schemas/{model}"


def openapi(url: str) -> Document:
    """The document for a sandbox that listens on `url`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Marketing Cloud sandbox",
            "version": _version(),
            "summary": "The token and OTT registration endpoints of Marketing Cloud, with faults on request.",
        },
        "servers": [{"url": url}],
        "tags": [
            {"name": "Marketing Cloud", "description": "What the real one offers."},
            {"name": "Control", "description": "What only the sandbox offers."},
        ],
        "paths": {**_marketing_cloud(), **_control()},
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _version() -> str:
    try:
        return version()
    except PackageNotFoundError:
        return "0"


def _marketing_cloud() -> Document:
    platform = _parameter("path", "platform", {"type": "string", "enum": ["line", "messenger"]})
    resource_id = _parameter("path", "ottPropertyId", {"type": "string"})
    number = {"type": "integer", "minimum": 1}
    not_authorized = _json("The token is missing, unknown or has ended", _ref("Error"))
    invalid = _json("The request is not valid", _ref("ValidationErrors"))
    return {
        "/v2/token": {
            "post": _operation(
                "Get a token",
                "getToken",
                {
                    "200": _json("A token", _ref("Token")),
                    "400": _json("The request or its account_id is not valid", _ref("TokenError")),
                    "401": _json("Wrong client id or secret", _ref("TokenError")),
                },
                body=_ref("TokenRequest"),
            )
        },
        "/ott/v1/registration": {
            "post": _operation(
                "Register a resource; the latest registration of an id overrides the ones before",
                "register",
                {
                    "201": {"description": "Registered"},
                    "400": invalid,
                    "401": not_authorized,
                    "403": _json("The token lacks the scope ott_channels_write", _ref("Error")),
                    "415": _json("The content type is not application/json", _ref("Error")),
                },
                body=_ref("Registration"),
                secured=True,
            )
        },
        "/ott/v1/registration/{platform}": {
            "get": _operation(
                "List the resources of a platform",
                "listRegistrations",
                {"200": _json("One page", _ref("Page")), "400": invalid, "401": not_authorized},
                parameters=[
                    platform,
                    _parameter("query", "$page", number),
                    _parameter("query", "$pagesize", number),
                ],
                secured=True,
            )
        },
        "/ott/v1/registration/{platform}/{ottPropertyId}": {
            "get": _operation(
                "Look a resource up",
                "getRegistration",
                {
                    "200": _json("The resource, flags as booleans, without secrets", _ref("Registered")),
                    "401": not_authorized,
                    "404": _json("Not registered", _ref("Error")),
                },
                parameters=[platform, resource_id],
                secured=True,
            )
        },
    }


def _control() -> Document:
    faults = {"type": "array", "items": {"type": "object"}}
    calls = {"type": "array", "items": _ref("Call")}
    done = {"204": {"description": "Done"}}

    def control(summary: str, name: str, responses: Document, **more: Any) -> Document:
        return _operation(summary, name, responses, tag="Control", **more)

    return {
        "/sandbox/faults": {
            "get": control("Show the faults in force", "showFaults", {"200": _json("Faults", faults)}),
            "post": control(
                "Add faults",
                "addFaults",
                {
                    "201": _json("The faults in force", faults),
                    "400": _json("Not a fault", _ref("Error")),
                    "415": _json("The content type is not application/json", _ref("Error")),
                },
                body=_ref("Faults"),
            ),
            "delete": control("Heal: end all faults", "heal", done),
        },
        "/sandbox/history": {
            "get": control(
                "Show the calls, oldest first",
                "showHistory",
                {"200": _json("The newest calls, or the first ones after a number", calls)},
                parameters=[
                    _parameter("query", "after", {"type": "integer"}),
                    _parameter("query", "limit", {"type": "integer", "default": 1000}),
                ],
            ),
            "delete": control("Forget the calls", "clearHistory", done),
        },
        "/sandbox/registrations": {
            "get": control(
                "Show what is registered, of all accounts, secrets masked",
                "showRegistrations",
                {"200": _json("Registrations", {"type": "array", "items": {"type": "object"}})},
            ),
            "delete": control("Forget what is registered", "clearRegistrations", done),
        },
        "/sandbox/tokens": {
            "delete": control(
                "End the tokens in force, of one account or all",
                "revokeTokens",
                {"200": _json("How many", {"type": "object"})},
                parameters=[_parameter("query", "account", {"type": "string"})],
            )
        },
    }


def _schemas() -> Document:
    faults = FAULTS.json_schema(ref_template=_REF)
    registrations = registration_schemas()
    return {
        **faults.pop("$defs"),
        "Faults": {"oneOf": [faults, faults["items"]], "description": "A list of faults, or one."},
        **registrations,
        "Registration": {"oneOf": [_ref(name) for name in registrations]},
        **_STATIC_SCHEMAS,
        "ValidationErrorEntry": TypeAdapter(ValidationErrorEntry).json_schema(),
    }


def _operation(
    summary: str,
    name: str,
    responses: Document,
    *,
    body: Document | None = None,
    parameters: list[Document] | None = None,
    secured: bool = False,
    tag: str = "Marketing Cloud",
) -> Document:
    operation: Document = {"summary": summary, "operationId": name, "tags": [tag], "responses": responses}
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if parameters:
        operation["parameters"] = parameters
    if secured:
        operation["security"] = [{"token": []}]
    return operation


def _parameter(place: str, name: str, schema: Document) -> Document:
    return {"in": place, "name": name, "schema": schema, "required": place == "path"}


def _json(description: str, schema: Document) -> Document:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _ref(name: str) -> Document:
    return {"$ref": _REF.format(model=name)}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> Document:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER = {"type": "integer"}
_SECRET = {"type": "string", "writeOnly": True}
_LINK = _object({"href": _TEXT})

_STATIC_SCHEMAS: Document = {
    "TokenRequest": _object(
        {"grant_type": {"const": "client_credentials"}, "client_id": _TEXT, "client_secret": _SECRET},
        {"account_id": {"type": ["string", "integer"], "description": "The MID of a business unit."}},
    ),
    "Token": _object(
        {
            "access_token": _TEXT,
            "token_type": {"const": "Bearer"},
            "expires_in": _NUMBER,
            "scope": _TEXT,
            "rest_instance_url": _TEXT,
        }
    ),
    "TokenError": _object({"error": _TEXT, "error_description": _TEXT, "error_uri": _TEXT}),
    "Error": _object({"message": _TEXT, "errorcode": _NUMBER, "documentation": _TEXT}),
    "ValidationErrors": _object(
        {
            "message": _TEXT,
            "errorcode": _NUMBER,
            "documentation": _TEXT,
            "validationErrors": {"type": "array", "items": _ref("ValidationErrorEntry")},
        }
    ),
    "Registered": _object({"ottPlatformName": _TEXT, "ottPlatformAttributes": {"type": "object"}}),
    "Page": _object(
        {
            "count": _NUMBER,
            "page": _NUMBER,
            "pageSize": _NUMBER,
            "links": _object({"self": _LINK}, {"previous": _LINK, "next": _LINK}),
            "items": {"type": "array", "items": _ref("Registered")},
        }
    ),
    "Call": _object(
        {
            "seq": _NUMBER,
            "arrivedAt": {"type": "number", "description": "Seconds since the epoch."},
            "finishedAt": {"type": ["number", "null"]},
            "method": _TEXT,
            "path": _TEXT,
            "account": _TEXT_OR_NULL,
            "platform": _TEXT_OR_NULL,
            "resourceId": _TEXT_OR_NULL,
            "status": {"type": ["integer", "null"], "description": "None without an answer."},
            "inFlight": {
                "type": "integer",
                "description": "Calls for the same resource that had not ended when this one came.",
            },
            "fault": _TEXT_OR_NULL,
            "sha256": _TEXT_OR_NULL,
            "body": {"type": ["object", "null"], "description": "With secrets masked."},
        }
    ),
}
