"""The contract of the events as JSON Schema (2020-12): their data, type by type, and their attributes."""

from pathlib import Path
from typing import Any, get_args

from events.catalogue import EVENT_TYPES
from events.event import AuthType

RELEASED = Path(__file__).parent / "released"
"""The schema of every type ever released, a file each, as subscribers know them (``make documents``)."""

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "specversion": {"const": "1.0", "description": "The version of CloudEvents."},
    "id": {"type": "string", "description": "`{subject}/{streamversion}`: the event's one id."},
    "source": {
        "type": "string",
        "pattern": "^/fpso/[1-9][0-9]*$",
        "description": "`/fpso/{epoch}`: the epoch rises with every restore from a backup. "
        "Order is (epoch, position).",
    },
    "type": {"type": "string", "description": "What happened. On RabbitMQ also the routing key."},
    "subject": {"type": "string", "description": "The stream: `vessel/{code}` or `equipment/{code}`."},
    "time": {
        "type": "string",
        "format": "date-time",
        "description": "When it was recorded: UTC, microseconds, strictly increasing with position.",
    },
    "dataschema": {
        "type": "string",
        "description": "`urn:fpso:schema:{type}`, served as `/schemas/{type}.json`.",
    },
    "datacontenttype": {
        "const": "application/json",
        "description": "On RabbitMQ it is the property `content_type`.",
    },
    "position": {
        "type": "integer",
        "minimum": 1,
        "description": "Its place among all events. Positions rise but may jump.",
    },
    "previousposition": {
        "type": "integer",
        "minimum": 0,
        "description": "The position of the event before it, 0 for the first ever. Where it is beyond your "
        "checkpoint you have lost something: fetch it with `GET /v1/events?after={checkpoint}`.",
    },
    "previousoftype": {
        "type": "integer",
        "minimum": 0,
        "description": "The position of the last event of the same type before it, 0 if there was none: "
        "the chain for whoever subscribes to some types only, with a checkpoint for each.",
    },
    "streamversion": {
        "type": "integer",
        "minimum": 1,
        "description": "Its place in its stream, from 1 without holes.",
    },
    "authid": {"type": "string", "description": "Who made it happen: an opaque subject."},
    "authtype": {
        "enum": list(get_args(AuthType)),
        "description": "How that actor was authenticated.",
    },
    "correlationid": {
        "type": "string",
        "description": "Shared by everything that belongs to one business transaction.",
    },
    "causationid": {"type": "string", "description": "The command that caused it."},
    "traceparent": {"type": "string", "description": "W3C Trace Context."},
}
"""The CloudEvents attributes of every event: those of the standard, then ours."""

OPTIONAL_ATTRIBUTES = frozenset({"causationid", "traceparent"})


def schema_of(type_: str) -> dict[str, Any] | None:
    """The JSON Schema of the data of events of ``type_``, or None where there is no such type.

    Members that a schema does not name may be added without a new version: readers ignore them.
    """
    model = EVENT_TYPES.get(type_)
    if model is None:
        return None
    schema = model.model_json_schema(by_alias=True)
    for member in schema["properties"].values():
        _without_null(member)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:fpso:schema:{type_}",
        **schema,
        "title": type_,
        "examples": [*model.examples],
    }


def _without_null(member: dict[str, Any]) -> None:
    """An optional member is absent, never null: that is how events are stored and published."""
    member.pop("title", None)
    choices = [choice for choice in member.pop("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        member.pop("default", None)
        member.update(choices[0])
