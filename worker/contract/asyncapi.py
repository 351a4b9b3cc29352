"""The AsyncAPI 3.0 document of one deployment (contract §1 to §5)."""

from typing import Any

from worker.contract.control import Order
from worker.contract.journal_record import JournalRecord
from worker.contract.schema import registration_schemas, reply_schemas, schemas_of
from worker.contract.status import WorkerStatus
from worker.contract.words import (
    ACCOUNT_HEADER,
    AS_OF_HEADER,
    ATTEMPTS_HEADER,
    CONTROL_TYPE,
    DEAD_AT_HEADER,
    ERROR_HEADER,
    JOURNAL_TYPE,
    NOT_ALLOWED,
    REASON_HEADER,
    REASONS,
    RECEIVED_AT_HEADER,
    REPLY_REFUSED_HEADER,
    REPLY_TYPE,
    REQUEST_KEY,
    STATUS_TYPE,
    UNROUTABLE,
)

Document = dict[str, Any]

_SCHEMA = "#/components/schemas/{model}"
_BINDING = "0.3.0"


def asyncapi(prefix: str, version: str) -> Document:
    """The document for the broker objects below `prefix`, as the worker sees them."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "OTT registration worker",
            "version": version,
            "description": "Takes registrations of Messenger pages and LINE channels from RabbitMQ, forwards "
            "them to Marketing Cloud and answers each with a result or an error envelope. For one resource "
            "the latest request wins.",
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {"host": "localhost:5672", "protocol": "amqp"}},
        "channels": _channels(prefix),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels(prefix: str) -> Document:
    return {
        "entry": {
            "address": REQUEST_KEY,
            "description": "The exchange that reaches the requests queue; publishing to the queue works too.",
            "messages": _message_refs("registration"),
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {"name": prefix, "type": "topic", "durable": True, "autoDelete": False},
                    "bindingVersion": _BINDING,
                }
            },
        },
        "requests": _queue(f"{prefix}.requests", "Requests, in the order that counts.", "registration"),
        "replies": _queue(
            f"{prefix}.replies", "Replies to requests without a usable reply_to.", "result", "errorEnvelope"
        ),
        "replyTo": {
            "address": None,
            "description": "The queue that the request's reply_to names, through the default exchange.",
            "messages": _message_refs("result", "errorEnvelope"),
        },
        "dead": _queue(f"{prefix}.dead", "Every request that was not registered.", "deadLetter"),
        "journal": _queue(
            f"{prefix}.journal", "A stream: what became of each request, without secrets.", "journal"
        ),
        "status": _queue(f"{prefix}.status", "A stream: what each worker is doing.", "status"),
        "control": _queue(f"{prefix}.control", "A stream: what operators order and change.", "order"),
    }


def _queue(name: str, description: str, *messages: str) -> Document:
    return {
        "address": name,
        "description": description,
        "messages": _message_refs(*messages),
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": name, "durable": True, "exclusive": False, "autoDelete": False},
                "bindingVersion": _BINDING,
            }
        },
    }


def _operations() -> Document:
    return {
        "receiveRequest": {
            "action": "receive",
            "summary": "Take a request; it is acknowledged once its reply or dead letter is confirmed.",
            "channel": _channel("requests"),
            "bindings": {"amqp": {"ack": True, "bindingVersion": _BINDING}},
            "reply": {
                "address": {
                    "location": "$message.header#/reply_to",
                    "description": "The AMQP property; without it the reply goes to the replies queue.",
                },
                "channel": _channel("replyTo"),
            },
        },
        "sendReply": _send("replies", "Answer a request that names no usable reply_to.", mandatory=True),
        "sendDeadLetter": _send("dead", "Keep a request that was not registered.", mandatory=True),
        "sendJournal": _send("journal", "Record what became of requests.", mandatory=True),
        "sendStatus": _send("status", "Tell what this worker is doing.", mandatory=False),
        "receiveOrder": {
            "action": "receive",
            "summary": "Obey a pause; operators publish it to the entry exchange with the key control.",
            "channel": _channel("control"),
        },
    }


def _send(channel: str, summary: str, *, mandatory: bool) -> Document:
    binding = {"deliveryMode": 2, "mandatory": mandatory, "bindingVersion": _BINDING}
    return {
        "action": "send",
        "summary": summary,
        "channel": _channel(channel),
        "bindings": {"amqp": binding},
    }


def _messages() -> Document:
    request = {
        "title": "Registration request",
        "contentType": "application/json",
        "headers": _ref("RequestHeaders"),
        "correlationId": {"location": "$message.header#/correlation_id"},
        "payload": _ref("Registration"),
    }
    return {
        "registration": request,
        "deadLetter": request
        | {
            "title": "Dead letter",
            "summary": "The original body, whatever it was, with its properties and headers.",
            "headers": {"allOf": [_ref("RequestHeaders"), _ref("DeadLetterHeaders")]},
            "payload": {"description": "The body as it came; it may be anything."},
        },
        "result": _reply("Result", "The request is registered."),
        "errorEnvelope": _reply("ErrorEnvelope", "The request is not registered."),
        "status": {
            "title": "Status of a worker",
            "contentType": "application/json",
            "payload": _ref("WorkerStatus"),
            "bindings": {"amqp": {"messageType": STATUS_TYPE, "bindingVersion": _BINDING}},
        },
        "order": {
            "title": "Order, or record of a change",
            "contentType": "application/json",
            "payload": _ref("Order"),
            "bindings": {"amqp": {"messageType": CONTROL_TYPE, "bindingVersion": _BINDING}},
        },
        "journal": {
            "title": "Journal records",
            "summary": "JSON lines: one record for each settled request.",
            "contentType": "application/x-ndjson",
            "payload": _ref("JournalRecord"),
            "bindings": {"amqp": {"messageType": JOURNAL_TYPE, "bindingVersion": _BINDING}},
        },
    }


def _reply(schema: str, summary: str) -> Document:
    return {
        "title": schema,
        "summary": summary,
        "contentType": "application/json",
        "headers": _ref("ReplyHeaders"),
        "correlationId": {"location": "$message.header#/correlation_id"},
        "payload": _ref(schema),
        "bindings": {"amqp": {"messageType": REPLY_TYPE, "bindingVersion": _BINDING}},
    }


def _schemas() -> Document:
    registrations = registration_schemas()
    return {
        "Registration": {
            "oneOf": [_ref(name) for name in registrations],
            "discriminator": "ottPlatformName",
            "required": ["ottPlatformName"],
        },
        **registrations,
        **reply_schemas(_SCHEMA),
        **schemas_of((JournalRecord, WorkerStatus, Order), _SCHEMA),
        "RequestHeaders": _REQUEST_HEADERS,
        "DeadLetterHeaders": _DEAD_LETTER_HEADERS,
        "ReplyHeaders": _REPLY_HEADERS,
    }


def _ref(schema: str) -> Document:
    return {"$ref": _SCHEMA.format(model=schema)}


def _channel(name: str) -> Document:
    return {"$ref": f"#/channels/{name}"}


def _message_refs(*names: str) -> Document:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _text(description: str, **more: Any) -> Document:
    return {"type": "string", "description": description, **more}


_REQUEST_HEADERS: Document = {
    "type": "object",
    "properties": {
        "message_id": _text("AMQP property: the request's id. Without one it is derived from the message."),
        "correlation_id": _text("AMQP property, echoed in the reply; without one the request's id is."),
        "reply_to": _text("AMQP property: the queue for the reply."),
        "content_type": _text("AMQP property: application/json, or absent."),
        ACCOUNT_HEADER: {
            "type": ["string", "integer"],
            "description": "The business unit (MID) whose token is used.",
        },
        AS_OF_HEADER: _text(
            "When what the request says was true; without it, when it arrived.", format="date-time"
        ),
    },
}

_DEAD_LETTER_HEADERS: Document = {
    "type": "object",
    "properties": {
        REASON_HEADER: _text(
            "Why the request was not registered.",
            enum=list(REASONS),
        ),
        ERROR_HEADER: _text("The error envelope's code and message, and the messages of validationErrors."),
        ATTEMPTS_HEADER: {"type": "integer", "description": "Calls made."},
        RECEIVED_AT_HEADER: _text("When the request was first received.", format="date-time"),
        DEAD_AT_HEADER: _text("When it was given up.", format="date-time"),
    },
}

_REPLY_HEADERS: Document = {
    "type": "object",
    "properties": {
        "message_id": _text("AMQP property: the reply's own id."),
        "correlation_id": _text("AMQP property: the request's correlation_id, or its id."),
        REPLY_REFUSED_HEADER: _text(
            "Why the request's reply_to was not followed.", enum=[UNROUTABLE, NOT_ALLOWED]
        ),
    },
}
