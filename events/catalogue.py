"""Every type of event ever released, and the only place where stored JSON becomes an event.

What is stored is one JSON object: the metadata's members, ``occurred_at``, and the event's ``data``.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from events.equipment import EquipmentEvent
from events.event import Event, EventData, Metadata
from events.values import time_text
from events.vessel import VesselEvent

DomainEvent = VesselEvent | EquipmentEvent

EVENT_TYPES: Mapping[str, type[DomainEvent]] = MappingProxyType(
    {model.type: model for model in (*get_args(VesselEvent), *get_args(EquipmentEvent))}
)
"""The model of each type in its latest version."""

Upcaster = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]

UPCASTERS: Mapping[str, Upcaster] = MappingProxyType({})
"""For each superseded type: its data as the next version's type and data. Applied only before folding."""


class Undecodable(ValueError):
    """A stored or received event cannot be read: its type is unknown, or its data are not of its type."""


def decode(type_: str, data: dict[str, Any]) -> DomainEvent:
    """The meaning of a stored event, in its latest version. Raises `Undecodable`."""
    while (upcast := UPCASTERS.get(type_)) is not None:
        type_, data = upcast(data)
    model = EVENT_TYPES.get(type_)
    if model is None:
        raise Undecodable(f"unknown event type {type_!r}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise Undecodable(f"data are not those of {type_}: {error}") from error


def encode_metadata(metadata: Mapping[str, str]) -> bytes:
    """The metadata of a command in their stored form, once for all its events."""
    return to_json(metadata)


def encode(event: EventData, metadata: bytes) -> bytes:
    """The stored form of ``event``, but for the time of its recording, which `stamped` adds."""
    return with_metadata(encode_data(event), metadata)


def encode_data(event: EventData) -> bytes:
    """The data of ``event`` as they are stored."""
    # What `model_dump_json` calls, which makes a string of it.
    return event.__pydantic_serializer__.to_json(event, by_alias=True, exclude_none=True)


def with_metadata(data: bytes, metadata: bytes) -> bytes:
    """An event's encoded data, with the metadata of its command in front."""
    return metadata[:-1] + b',"data":' + data + b"}"


def stamped(state: bytes, occurred_at: datetime) -> bytes:
    """The stored form ``state`` with the time of its recording in front."""
    return b'{"occurred_at":"' + time_text(occurred_at).encode() + b'",' + state[1:]


def event_of(
    stream: str,
    version: int,
    type_: str,
    state: bytes,
    *,
    position: int,
    previous_position: int,
    previous_of_type: int,
    epoch: int,
) -> Event:
    """The event that is stored as ``state``. Raises `Undecodable` where that is not one of ours."""
    try:
        stored = from_json(state)
        # Without keywords, in the order of their declaration: everything that reads events waits for this.
        metadata = Metadata(
            stored["actor"],
            stored["auth_type"],
            stored["correlation_id"],
            stored.get("causation_id"),
            stored.get("idempotency_key"),
            stored.get("traceparent"),
        )
        return Event(
            stream,
            version,
            position,
            previous_position,
            previous_of_type,
            epoch,
            type_,
            datetime.fromisoformat(stored["occurred_at"]),
            metadata,
            stored["data"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Undecodable(
            f"{stream}/{version} at position {position} is not a stored event: {error}"
        ) from error
