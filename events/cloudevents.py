"""CloudEvents 1.0: an event as context attributes and data, and back.

JSON event format for the feed and the audit log; AMQP protocol binding, binary content mode, for the broker
(attributes as headers with the binding's preferred prefix, ``cloudEvents_``).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast, get_args

from pydantic_core import from_json, to_json

from events.catalogue import Undecodable
from events.event import AuthType, Event, Metadata
from events.values import time_text

HEADER_PREFIX = "cloudEvents_"
CONTENT_TYPE = "application/json"
# CloudEvents' Integer has 32 bits; past this position an operator is warned while there is room left.
POSITION_WARNING = 2**30


def attributes_of(event: Event) -> dict[str, str | int]:
    """The context attributes of ``event``; those that it does not have are absent."""
    attributes: dict[str, str | int | None] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/fpso/{event.epoch}",
        "type": event.type,
        "subject": event.stream,
        "time": time_text(event.occurred_at),
        "dataschema": f"urn:fpso:schema:{event.type}",
        "position": event.position,
        "previousposition": event.previous_position,
        "previousoftype": event.previous_of_type,
        "streamversion": event.version,
        "authid": event.metadata.actor,
        "authtype": event.metadata.auth_type,
        "correlationid": event.metadata.correlation_id,
        "causationid": event.metadata.causation_id,
        "traceparent": event.metadata.traceparent,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def json_of(event: Event) -> dict[str, Any]:
    """``event`` in the JSON event format."""
    return {**attributes_of(event), "datacontenttype": CONTENT_TYPE, "data": event.data}


def headers_of(event: Event) -> dict[str, str | int]:
    """The application properties of the AMQP message of ``event``."""
    return {HEADER_PREFIX + name: value for name, value in attributes_of(event).items()}


def body_of(event: Event) -> bytes:
    """The body of the AMQP message of ``event``: its data, exactly as stored."""
    return to_json(event.data)


def event_of_message(headers: Mapping[str, Any], body: bytes) -> Event:
    """The event that an AMQP message carries. Raises `Undecodable` where it is not one of ours.

    The idempotency key does not leave the event store, so a received event has none.
    """
    attributes = {
        name.removeprefix(HEADER_PREFIX): value
        for name, value in headers.items()
        if name.startswith(HEADER_PREFIX)
    }
    try:
        source, _, epoch = str(attributes["source"]).rpartition("/")
        if attributes["specversion"] != "1.0" or source != "/fpso":
            raise Undecodable(f"not an event of this system: source {attributes['source']!r}")
        data = from_json(body)
        if not isinstance(data, dict):
            raise Undecodable("the data of an event are an object")
        return Event(
            stream=_text(attributes["subject"]),
            version=_integer(attributes["streamversion"]),
            position=_integer(attributes["position"]),
            previous_position=_integer(attributes["previousposition"]),
            previous_of_type=_integer(attributes["previousoftype"]),
            epoch=int(epoch),
            type=_text(attributes["type"]),
            occurred_at=_time(attributes["time"]),
            metadata=Metadata(
                actor=_text(attributes["authid"]),
                auth_type=_auth_type(attributes["authtype"]),
                correlation_id=_text(attributes["correlationid"]),
                causation_id=_text_or_absent(attributes.get("causationid")),
                traceparent=_text_or_absent(attributes.get("traceparent")),
            ),
            data=data,
        )
    except Undecodable:
        raise
    except KeyError as error:
        raise Undecodable(f"not an event of this system: no attribute {error}") from error
    except (ValueError, TypeError) as error:
        raise Undecodable(f"not an event of this system: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _text_or_absent(value: object) -> str | None:
    return None if value is None else _text(value)


def _time(value: object) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError(f"expected a time with its offset, got {value!r}")
    return time


def _auth_type(value: object) -> AuthType:
    for auth_type in get_args(AuthType):
        if value == auth_type:
            return cast(AuthType, auth_type)
    raise ValueError(f"expected a kind of authentication, got {value!r}")


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected an integer, got {value!r}")
    return value
