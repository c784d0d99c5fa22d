"""AsyncAPI 3.0: what a subscriber receives, where, and what it looks like.

The document is made of the events' schemas, by `infra.documents`. It is written from the subscriber's side:
``receive`` is what a subscriber does.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from events.cloudevents import CONTENT_TYPE, HEADER_PREFIX, headers_of, json_of
from events.event import Event, Metadata
from events.schemas import ATTRIBUTES, OPTIONAL_ATTRIBUTES
from infra.broker import AUDIT_EXCHANGE, EVENTS_EXCHANGE, NOTE_CONTENT_TYPE, STREAM_QUEUE

DOCUMENT = Path(__file__).parent.parent / "query_api" / "static" / "asyncapi.json"
"""The committed document."""

STRUCTURED = "application/cloudevents+json"
"""Media type of the JSON event format: attributes and data in one object."""

_BINDING = {"bindingVersion": "0.3.0"}  # of both the AMQP and the HTTP bindings
_CODES = {"vessel": "ODIN", "equipment": "71-PA-7301A"}  # of what the examples happened to

_DESCRIPTION = (
    "What happened to a fleet's vessels and their equipment, as CloudEvents 1.0, seen by those who "
    "subscribe: `receive` is what a subscriber does.\n\n"
    "Delivery is at least once, in order. Every event names the one before it (`previousposition`, "
    "`previousoftype`): a loss shows, and `GET /v1/events?after=` has what was lost. Ignore members and "
    "attributes that you do not know; what is more than a new optional member is a new type."
)

Schema = Mapping[str, Any]


def document(version: str, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """The AsyncAPI document of release ``version``; ``schemas`` are those of the data, by type."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "FPSO System: events",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": _servers(),
        "channels": _channels(schemas),
        "operations": _operations(),
        "components": {
            "messages": {
                **{type_: _message(type_, schema) for type_, schema in schemas.items()},
                **{f"{type_}.json": _structured(type_, schema) for type_, schema in schemas.items()},
                "checkpoint": _checkpoint(),
            },
            "schemas": {
                "headers": _object_of({HEADER_PREFIX + name: name for name in ATTRIBUTES if name != _BODY}),
                "attributes": _object_of({name: name for name in ATTRIBUTES}),
                **{
                    type_: {keyword: said for keyword, said in schema.items() if keyword != "$schema"}
                    for type_, schema in schemas.items()
                },
            },
            "securitySchemes": {
                "amqp": {"type": "userPassword", "description": "The user `subscriber`."},
            },
        },
    }


def _servers() -> dict[str, Any]:
    return {
        "broker": {
            "host": "{host}:{port}",
            "protocol": "amqp",
            "protocolVersion": "0-9-1",
            "description": "RabbitMQ: `FPSO_AMQP_URL` of the deployment.",
            "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "5672"}},
            "security": [_ref("components", "securitySchemes", "amqp")],
        },
        "gateway": {
            "host": "{host}:{port}",
            "protocol": "http",
            "description": "The gateway, for those without AMQP; `/openapi.json` describes its requests.",
            "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "8088"}},
        },
    }


def _channels(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    messages = {type_: _ref("components", "messages", type_) for type_ in schemas}
    return {
        "events": {
            "address": "{type}",
            "description": "Every event as it happens. Declare a queue of your own, `subscriber.…`, and bind "
            "it to types or patterns such as `fpso.equipment.*.v1` or `#`.",
            "servers": [_ref("servers", "broker")],
            "parameters": {"type": {"description": "The event's type.", "enum": [*schemas]}},
            "messages": messages,
            "bindings": {"amqp": _exchange(EVENTS_EXCHANGE, "topic")},
        },
        "stream": {
            "address": STREAM_QUEUE,
            "description": "The same events from any offset: a stream queue, consumed with the argument "
            "`x-stream-offset` (`first` for the beginning of what is kept).",
            "servers": [_ref("servers", "broker")],
            "messages": messages,
            "bindings": {
                "amqp": {
                    "is": "queue",
                    "queue": {"name": STREAM_QUEUE, "durable": True, "exclusive": False, "autoDelete": False},
                    **_BINDING,
                }
            },
        },
        "feed": {
            "address": "/v1/events/stream",
            "description": "The same events as Server-Sent Events: `id` is the position, `event` the type, "
            "`data` the event in CloudEvents' JSON format. Resumes after `Last-Event-ID`.",
            "servers": [_ref("servers", "gateway")],
            "messages": {type_: _ref("components", "messages", f"{type_}.json") for type_ in schemas},
        },
        "checkpoints": {
            "address": None,
            "description": "Every signed checkpoint of the audit log: whoever keeps them is its witness.",
            "servers": [_ref("servers", "broker")],
            "messages": {"checkpoint": _ref("components", "messages", "checkpoint")},
            "bindings": {"amqp": _exchange(AUDIT_EXCHANGE, "fanout")},
        },
    }


def _exchange(name: str, kind: str) -> dict[str, Any]:
    exchange = {"name": name, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"}
    return {"is": "routingKey", "exchange": exchange, **_BINDING}


def _operations() -> dict[str, Any]:
    acknowledged = {"amqp": {"ack": True, **_BINDING}}
    query = {
        "after": {
            "anyOf": [{"type": "integer", "minimum": 0}, {"const": "head"}],
            "description": "Begin after this position, by default with the first event.",
        },
        "type": {"type": "string", "description": "Types, comma-separated; each may end in `*`."},
        "stream": {"type": "string", "description": "One stream, such as `equipment/71-PA-7301A`."},
    }
    over_http = {"http": {"method": "GET", "query": {"type": "object", "properties": query}, **_BINDING}}
    return {
        "receiveEvents": _receive("events", "Receive events as they happen.", acknowledged),
        "replayEvents": _receive("stream", "Receive events from any moment on.", acknowledged),
        "streamEvents": _receive("feed", "Receive events over HTTP, from any position on.", over_http),
        "receiveCheckpoints": _receive("checkpoints", "Witness the audit log.", acknowledged),
    }


def _receive(channel: str, summary: str, bindings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": _ref("channels", channel),
        "summary": summary,
        "bindings": bindings,
    }


def _message(type_: str, schema: Schema) -> dict[str, Any]:
    """On RabbitMQ: CloudEvents' AMQP binding, binary content mode."""
    said = {HEADER_PREFIX + name: value for name, value in _constants(type_).items()}
    return {
        "name": type_,
        "title": type_,
        "summary": schema["description"],
        "contentType": CONTENT_TYPE,
        "correlationId": {"location": f"$message.header#/{HEADER_PREFIX}correlationid"},
        "headers": {"allOf": [_ref("components", "schemas", "headers"), {"properties": said}]},
        "payload": _ref("components", "schemas", type_),
        "examples": [
            {"headers": headers_of(event), "payload": event.data} for event in _examples(type_, schema)
        ],
    }


def _structured(type_: str, schema: Schema) -> dict[str, Any]:
    """Over HTTP: CloudEvents' JSON format."""
    said = {**_constants(type_), "data": _ref("components", "schemas", type_)}
    own = {"properties": said, "required": ["data"]}
    return {
        "name": type_,
        "title": f"{type_} in JSON format",
        "summary": schema["description"],
        "contentType": STRUCTURED,
        "correlationId": {"location": "$message.payload#/correlationid"},
        "payload": {"allOf": [_ref("components", "schemas", "attributes"), own]},
        "examples": [{"payload": json_of(event)} for event in _examples(type_, schema)],
    }


def _checkpoint() -> dict[str, Any]:
    return {
        "title": "Signed checkpoint",
        "summary": "A signed note (C2SP tlog-checkpoint): origin, number of events, root hash, signatures.",
        "contentType": NOTE_CONTENT_TYPE,
        "payload": {"type": "string"},
    }


_BODY = "datacontenttype"  # is no header: AMQP has a property for it


def _object_of(members: Mapping[str, str]) -> dict[str, Any]:
    """Every attribute under its name as a member."""
    return {
        "type": "object",
        "properties": {member: ATTRIBUTES[name] for member, name in members.items()},
        "required": [member for member, name in members.items() if name not in OPTIONAL_ATTRIBUTES],
    }


def _constants(type_: str) -> dict[str, Any]:
    return {"type": {"const": type_}, "dataschema": {"const": f"urn:fpso:schema:{type_}"}}


def _examples(type_: str, schema: Schema) -> list[Event]:
    kind = type_.split(".")[1]
    return [
        Event(
            stream=f"{kind}/{data.get('code', _CODES[kind])}",
            version=1 if "code" in data else 3,  # a registration is the first of its stream
            position=42,
            previous_position=41,
            previous_of_type=17,
            epoch=1,
            type=type_,
            occurred_at=datetime(2026, 3, 3, 12, 0, 0, 1, tzinfo=UTC),
            metadata=Metadata("maintenance-planning", "api_key", "work-order-4711"),
            data=data,
        )
        for data in schema["examples"]
    ]


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "/".join(["#", *path])}
